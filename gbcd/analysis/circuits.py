"""A circuit as a graph, in the file format of EAP-IG and MIB, so that their tools can read it and ours theirs.

    {"cfg": {"n_layers", "n_heads", "parallel_attn_mlp", "d_model"},
     "nodes": {"input" | "a{L}.h{H}" | "m{L}" | "logits": {"in_graph", "score"}},
     "edges": {"a5.h5->m7": {"score", "in_graph"}, "input->a0.h0<q>": ...}}

Every node hands its output to every later node through the residual stream: a head reads it three times (`<q>`, `<k>`,
`<v>`), an MLP also from the heads of its own layer unless both run in parallel. `input` and `logits` are in every
circuit and have no score.

A score of nodes says nothing about single edges, but an edge matters no more than either of its ends. So an edge
has the smaller of its ends' scores, and is in the circuit if both of them are. `gbcd evaluate`, which has
counterfactuals, gives edges scores of their own by edge attribution.

The format knows heads and MLPs. Where heads share keys and values, the groups that own these are left out and the best
of the heads and MLPs are taken.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import networkx as nx
import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError

from gbcd.analysis.ranking import CIRCUIT_SHARE
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


class Circuit(BaseModel):
    """A circuit inside the full graph of its model."""

    model_config = ConfigDict(frozen=True)

    cfg: Config
    nodes: dict[str, Node]
    edges: dict[str, Edge]

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
        nodes, edges = set(node_names(circuit.cfg)), set(edge_names(circuit.cfg))
        if strange := sorted((circuit.nodes.keys() ^ nodes) | (circuit.edges.keys() ^ edges)):
            raise BadInput(
                f"{source}: its cfg and its graph differ in {len(strange)} nodes or edges, first {strange[0]!r}"
            )
        return circuit

    def to_csv(self) -> str:
        """Every edge of the graph as a line: `source,target,part,score,in_graph`; `part` is q, k or v into heads."""
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


def circuit_of(
    cfg: Config, scores: Mapping[str, float], members: Collection[str], edge_scores: Mapping[str, float] | None = None
) -> Circuit:
    """The circuit of the nodes `members`, in a graph with the score of every head and MLP.

    Args:
        cfg: shape of the model.
        scores: of its heads and MLPs.
        members: names of those inside.
        edge_scores: of all edges, where these have scores of their own (`gbcd.evaluation.edges`).
    """
    inside = {INPUT, LOGITS, *members}
    highest = max(scores.values())
    known = {**scores, INPUT: highest, LOGITS: highest}
    nodes = {name: Node(in_graph=name in inside, score=scores.get(name)) for name in node_names(cfg)}
    edges: dict[str, Edge] = {}
    for name in edge_names(cfg):
        source, target = ends(name)
        # the format has an MLP in every layer, and a model of attention alone has none
        weaker = min(known[source], known[target]) if {source, target} <= known.keys() else 0.0
        score = weaker if edge_scores is None else edge_scores[name]
        edges[name] = Edge(score=score, in_graph=source in inside and target in inside)
    return Circuit(cfg=cfg, nodes=nodes, edges=edges)


def circuit_files(summary: pl.DataFrame, cfg: Config | None) -> dict[str, bytes]:
    """The circuits of a summary by file name: the best `CIRCUIT_SHARE` of the nodes of each task and wrong answer.

    The first is `circuit.json`; a study of several has a `circuit_<task>_<wrong answer>.json` for each further one. A
    model without norms, as tracr compiles them, is not what the format describes and has none.
    """
    files: dict[str, bytes] = {}
    if cfg is None:
        return files
    known = set(node_names(cfg))
    nodes = summary.filter(
        (pl.col("level") == "node") & pl.col("rank").is_not_null() & pl.col("component").is_in(known)
    )
    for (task, wrong_answer), rows in nodes.group_by("task", "wrong_answer", maintain_order=True):
        scores = dict(rows.select("component", "score").iter_rows())
        members = rows.sort("rank").head(round(CIRCUIT_SHARE * len(rows)))["component"].to_list()
        name = f"circuit_{task}_{wrong_answer}.json" if files else "circuit.json"
        files[name] = circuit_of(cfg, scores, members).to_json()
    return files


def node_names(cfg: Config) -> list[str]:
    """All nodes, in the order of the forward pass."""
    blocks = [[*_heads(cfg, layer), f"m{layer}"] for layer in range(cfg.n_layers)]
    return [INPUT, *(name for block in blocks for name in block), LOGITS]


def edge_names(cfg: Config) -> Iterator[str]:
    """All edges, in the order of their targets."""
    earlier = [INPUT]
    for layer in range(cfg.n_layers):
        heads = _heads(cfg, layer)
        yield from (f"{source}->{head}<{part}>" for head in heads for part in "qkv" for source in earlier)
        into_mlp = earlier if cfg.parallel_attn_mlp else [*earlier, *heads]
        yield from (f"{source}->m{layer}" for source in into_mlp)
        earlier += [*heads, f"m{layer}"]
    yield from (f"{source}->{LOGITS}" for source in earlier)


def ends(edge: str) -> tuple[str, str]:
    """Source and target of an edge by its name."""
    source, target = edge.split("->", 1)
    return source, target.split("<", 1)[0]


def _heads(cfg: Config, layer: int) -> list[str]:
    return [f"a{layer}.h{head}" for head in range(cfg.n_heads)]
