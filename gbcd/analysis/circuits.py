"""A circuit as a graph, in the file format of EAP-IG and MIB, so that their tools can read it and ours theirs.

    {"cfg": {"n_layers", "n_heads", "parallel_attn_mlp", "d_model"},
     "nodes": {"input" | "a{L}.h{H}" | "m{L}" | "logits": {"in_graph", "score"}},
     "edges": {"a5.h5->m7": {"score", "in_graph"}, "input->a0.h0<q>": ...},
     "selection": {"by", "n", "score", ...}}

Every node hands its output to every later node through the residual stream: a head reads it three times (`<q>`, `<k>`,
`<v>`), an MLP also from the heads of its own layer unless both run in parallel. `input` and `logits` are in every
circuit and have no score. A file lists all nodes, and of the edges those in the circuit: the others are too many to be
written (1.6 million in a model of 32 layers of 32 heads), and readers take an edge that is not listed as outside.

Where a study has edges, the circuit is made of edges (`selection.py`). Otherwise it is made of nodes: an edge is inside
if both of its ends are, and has the smaller of their scores, since it matters no more than either.

The format knows heads and MLPs. Where heads share keys and values, each has its own reads of them, as MIB counts them,
and the groups that own the weights are left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import networkx as nx
from pydantic import BaseModel, ConfigDict, ValidationError

from gbcd.component import Component
from gbcd.errors import BadInput

INPUT, LOGITS = "input", "logits"


class Config(BaseModel):
    """Shape of the model."""

    model_config = ConfigDict(frozen=True)

    n_layers: int
    n_heads: int
    parallel_attn_mlp: bool
    d_model: int

    @staticmethod
    def of(components: Sequence[Component], parallel: bool) -> Config | None:
        """Shape of the model with these parts, whose last norm is as wide as its residual stream.

        Args:
            components: the parts of the model.
            parallel: whether attention and MLP of a block both read the block's input.

        Returns:
            The shape, or None for a model without that norm, whose width its parts do not tell.
        """
        layers = {component.layer for component in components if component.is_circuit_part}
        heads = {component.head for component in components if component.head is not None}
        norm = next((component for component in components if component.name == "final.norm"), None)
        if norm is None:
            return None
        return Config(n_layers=len(layers), n_heads=len(heads), parallel_attn_mlp=parallel, d_model=norm.n_params)


class Node(BaseModel):
    """A node; `score` is None where there is none."""

    model_config = ConfigDict(frozen=True)

    in_graph: bool
    score: float | None = None


class Edge(BaseModel):
    """An edge."""

    model_config = ConfigDict(frozen=True)

    score: float
    in_graph: bool


class Selection(BaseModel):
    """How the circuit was chosen.

    Attributes:
        by: `nodes` (the best by score), or a method of `selection.select`.
        n: how many nodes or edges were asked for.
        score: what ranked the nodes, or `edges`.
        condition: what each edge had to meet.
    """

    model_config = ConfigDict(frozen=True)

    by: str
    n: int
    score: str
    condition: str | None = None


class Circuit(BaseModel):
    """A circuit inside the full graph of its model."""

    model_config = ConfigDict(frozen=True)

    cfg: Config
    nodes: dict[str, Node]
    edges: dict[str, Edge]
    selection: Selection | None = None

    def to_json(self) -> bytes:
        """The file."""
        return self.model_dump_json(exclude_none=True).encode()

    @staticmethod
    def from_json(data: bytes, source: str) -> Circuit:
        """Read a file; `source` names it in errors.

        Raises:
            BadInput: it is no circuit, or its nodes and edges are not those of its `cfg`.
        """
        try:
            circuit = Circuit.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(step) for step in first["loc"])
            raise BadInput(f"{source} is not a circuit in the format of EAP-IG: {where}: {first['msg']}") from error
        nodes = circuit.nodes.keys() ^ set(node_names(circuit.cfg))
        if strange := sorted(nodes or circuit.edges.keys() - set(edge_names(circuit.cfg))):
            raise BadInput(
                f"{source}: its cfg and its graph differ in {len(strange)} nodes or edges, first {strange[0]!r}"
            )
        return circuit

    def to_csv(self) -> str:
        """Every edge of the file as a line: `source,target,part,score,in_graph`; `part` is q, k or v into heads."""
        lines = ["source,target,part,score,in_graph"]
        for name, edge in self.edges.items():
            source, target = ends(name)
            part = name[-2] if name.endswith(">") else ""
            lines.append(f"{source},{target},{part},{edge.score!r},{str(edge.in_graph).lower()}")
        return "\n".join(lines) + "\n"

    def to_networkx(self) -> nx.MultiDiGraph:  # pyright: ignore[reportMissingTypeArgument]  (has none at run time)
        """The nodes and edges that are in the circuit; edges carry `score` and, into heads, `part` (q, k or v)."""
        graph = nx.MultiDiGraph()
        for name, node in self.nodes.items():
            if node.in_graph:
                graph.add_node(name, **node.model_dump(include={"score"}, exclude_none=True))
        for name, edge in self.edges.items():
            if edge.in_graph:
                source, target = ends(name)
                part = {"part": name[-2]} if name.endswith(">") else {}
                graph.add_edge(source, target, score=edge.score, **part)
        return graph


def circuit_of_nodes(
    cfg: Config, scores: Mapping[str, float], members: Collection[str], selection: Selection | None = None
) -> Circuit:
    """The circuit of the nodes `members` and all edges between them, in a graph with the score of every head and MLP.

    Args:
        cfg: shape of the model.
        scores: of its heads and MLPs.
        members: names of those inside.
        selection: how they were chosen.
    """
    inside, highest = {INPUT, LOGITS, *members}, max(scores.values())
    known = {**scores, INPUT: highest, LOGITS: highest}
    edges = {
        f"{source}->{target}": Edge(score=min(known[source], known[node]), in_graph=True)
        for source, target in zip(*edge_ends(cfg), strict=True)
        if source in inside and (node := target.split("<", 1)[0]) in inside
    }
    return Circuit(cfg=cfg, nodes=_nodes(cfg, scores, inside), edges=edges, selection=selection)


def circuit_of_edges(
    cfg: Config, scores: Mapping[str, float], edges: Mapping[str, float], selection: Selection | None = None
) -> Circuit:
    """The circuit of `edges`, with their scores, and the nodes that they join.

    Args:
        cfg: shape of the model.
        scores: of its heads and MLPs.
        edges: scores of the edges inside, by name.
        selection: how they were chosen.
    """
    inside = {INPUT, LOGITS, *(end for edge in edges for end in ends(edge))}
    found = {edge: Edge(score=score, in_graph=True) for edge, score in edges.items()}
    return Circuit(cfg=cfg, nodes=_nodes(cfg, scores, inside), edges=found, selection=selection)


def node_names(cfg: Config) -> list[str]:
    """All nodes, in the order of the forward pass."""
    blocks = [[*_heads(cfg, layer), f"m{layer}"] for layer in range(cfg.n_layers)]
    return [INPUT, *(name for block in blocks for name in block), LOGITS]


class EdgeEnds(NamedTuple):
    """Source and target of every edge, in canonical order; targets that are heads end in `<q>`, `<k>` or `<v>`."""

    sources: list[str]
    targets: list[str]


def edge_ends(cfg: Config) -> EdgeEnds:
    """Ends of all edges, in the order of their targets and, for one target, of the forward pass."""
    found = EdgeEnds([], [])

    def add(sources: list[str], target: str) -> None:
        found.sources.extend(sources)
        found.targets.extend([target] * len(sources))

    earlier = [INPUT]
    for layer in range(cfg.n_layers):
        heads = _heads(cfg, layer)
        for head in heads:
            for part in "qkv":
                add(earlier, f"{head}<{part}>")
        add(earlier if cfg.parallel_attn_mlp else [*earlier, *heads], f"m{layer}")
        earlier = [*earlier, *heads, f"m{layer}"]
    add(earlier, LOGITS)
    return found


def edge_names(cfg: Config) -> list[str]:
    """All edges, in the order of `edge_ends`."""
    return [f"{source}->{target}" for source, target in zip(*edge_ends(cfg), strict=True)]


def n_edges(cfg: Config) -> int:
    """Edges of the whole graph."""
    per_layer = cfg.n_heads + 1
    before = sum(1 + layer * per_layer for layer in range(cfg.n_layers))
    into_mlps = 0 if cfg.parallel_attn_mlp else cfg.n_layers * cfg.n_heads
    return before * (3 * cfg.n_heads + 1) + into_mlps + 1 + cfg.n_layers * per_layer


def ends(edge: str) -> tuple[str, str]:
    """The nodes that an edge joins, by its name."""
    source, target = edge.split("->", 1)
    return source, target.split("<", 1)[0]


def _heads(cfg: Config, layer: int) -> list[str]:
    return [f"a{layer}.h{head}" for head in range(cfg.n_heads)]


def _nodes(cfg: Config, scores: Mapping[str, float], inside: Collection[str]) -> dict[str, Node]:
    return {name: Node(in_graph=name in inside, score=scores.get(name)) for name in node_names(cfg)}
