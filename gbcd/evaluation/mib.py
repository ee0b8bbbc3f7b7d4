"""Circuits in the files of EAP-IG and of the MIB benchmark: scores and membership of every edge of a model.

    TASK_MODEL/importances.pt      a dictionary that torch saved: `cfg`, `src_nodes`, `dst_nodes`, and as matrices of
                                   sources x targets `edges_scores` and `edges_in_graph`; `nodes_in_graph` of sources
    TASK_MODEL/importances.json    the same in the format of `gbcd.analysis.circuits`

Sources are the input and, layer by layer, heads and MLP; targets are, layer by layer, queries of all heads, their keys,
their values and the MLP, and last the logits (https://github.com/hannamw/EAP-IG, `Graph.to_pt`, `Graph.to_json`).
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int

from gbcd.analysis.circuit_files import read_circuits
from gbcd.analysis.circuits import Circuit, Config, Edge, edge_ends, n_edges, node_names
from gbcd.analysis.shard_values import Key
from gbcd.errors import BadInput
from gbcd.evaluation.circuit_sets import EdgeTable
from gbcd.evaluation.tables import EDGE_SCORES_FILE
from gbcd.run.results import EDGES_FILE, read_stored
from gbcd.run.shards import read_plan
from gbcd.run.store import Store


class Importances(NamedTuple):
    """Edges of a model in canonical order.

    Attributes:
        cfg: shape of the model.
        scores: of every edge; zero where a file lists none.
        inside: which are in the circuit.
        is_complete: whether the file scores every edge.
    """

    cfg: Config
    scores: Float[np.ndarray, " edges"]
    inside: Bool[np.ndarray, " edges"]
    is_complete: bool


def export(out: str, folder: Path) -> list[Path]:
    """Write the circuit of every task and wrong answer of a study, with scores of all edges.

    Scores are those of the study's edges, else of attribution patching by `gbcd evaluate`, else each edge has the
    smaller score of its ends.

    Returns:
        The folders that were written.

    Raises:
        BadInput: the study was not reduced, or its model is not one that the format describes.
    """
    store = Store(out)
    model = Path(read_plan(store).study.model).name
    written: list[Path] = []
    for key, circuit in read_circuits(out).items():
        table = EdgeTable(circuit.cfg)
        inside = {name for name, edge in circuit.edges.items() if edge.in_graph}
        names = table.frame.select(pl.format("{}->{}", "source", "target")).to_series().to_list()
        members = np.array([name in inside for name in names])
        target = folder / f"{key.task}_{model}"
        if target in written:
            target = folder / f"{key.task}_{model}_{key.wrong_answer}"
        scores = _scores(store, key, circuit, table)
        write_importances(target, Importances(circuit.cfg, scores, members, True), circuit)
        written.append(target)
    if not written:
        raise BadInput(f"{out!r} has no circuits: the format describes models with norms, heads and MLPs")
    return written


def write_importances(folder: Path, found: Importances, circuit: Circuit) -> None:
    """Write both files; scores of nodes are those of `circuit`."""
    cfg, (rows, columns) = found.cfg, _matrix(found.cfg)
    shape = 1 + cfg.n_layers * (cfg.n_heads + 1), cfg.n_layers * (3 * cfg.n_heads + 1) + 1
    scores, inside = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
    scores[rows, columns] = torch.tensor(found.scores, dtype=torch.float32)
    inside[rows, columns] = torch.tensor(found.inside)
    sources = node_names(cfg)[:-1]
    content = {
        "cfg": cfg.model_dump(),
        "src_nodes": sources,
        "dst_nodes": _targets(cfg),
        "edges_scores": scores,
        "edges_in_graph": inside,
        "nodes_in_graph": torch.tensor([circuit.nodes[name].in_graph for name in sources]),
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / "importances.pt")
    both = zip(found.scores.tolist(), found.inside.tolist(), strict=True)
    edges = [Edge(score=score, in_graph=is_inside) for score, is_inside in both]
    names = (f"{source}->{target}" for source, target in zip(*edge_ends(cfg), strict=True))
    whole = circuit.model_copy(update={"edges": dict(zip(names, edges, strict=True)), "selection": None})
    (folder / "importances.json").write_bytes(whole.to_json())


def read_importances(path: Path) -> Importances:
    """Read a circuit file, `.pt` or `.json`, whoever wrote it.

    Raises:
        BadInput: there is no such file, or it is no circuit.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"circuit {str(path)!r} cannot be read: {error}") from error
    if path.suffix == ".json":
        circuit = Circuit.from_json(content, str(path))
        names = [f"{source}->{target}" for source, target in zip(*edge_ends(circuit.cfg), strict=True)]
        listed = [circuit.edges.get(name) for name in names]
        scores = np.array([0.0 if edge is None else edge.score for edge in listed])
        inside = np.array([edge is not None and edge.in_graph for edge in listed])
        return Importances(circuit.cfg, scores, inside, None not in listed)
    try:
        loaded: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
        cfg = Config.model_validate(loaded["cfg"])
        rows, columns = _matrix(cfg)
        scores, inside = (loaded[name][rows, columns].numpy() for name in ("edges_scores", "edges_in_graph"))
    except (KeyError, ValueError, IndexError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise BadInput(f"{str(path)!r} is not a circuit in the format of EAP-IG: {error}") from error
    return Importances(cfg, scores.astype(np.float64), inside.astype(bool), True)


def _scores(store: Store, key: Key, circuit: Circuit, table: EdgeTable) -> Float[np.ndarray, " edges"]:
    """The best scores of edges that a study has."""
    sources = ((EDGES_FILE, pl.col("wrong_answer") == key.wrong_answer, "mean"),
               (EDGE_SCORES_FILE, pl.col("method") == "attribution_patching", "score"))  # fmt: skip
    for path, chosen, column in sources:
        if store.exists(path):
            rows = read_stored(store, path).filter(chosen, task=key.task)
            if len(rows) == n_edges(circuit.cfg):
                return rows[column].to_numpy()
    return table.of_nodes({name: node.score for name, node in circuit.nodes.items() if node.score is not None})


def _targets(cfg: Config) -> list[str]:
    parts = [[f"a{layer}.h{head}<{part}>" for part in "qkv" for head in range(cfg.n_heads)] + [f"m{layer}"]
             for layer in range(cfg.n_layers)]  # fmt: skip
    return [*(name for block in parts for name in block), "logits"]


def _matrix(cfg: Config) -> tuple[Int[np.ndarray, " edges"], Int[np.ndarray, " edges"]]:
    """Row and column of every edge, in canonical order, in the format's matrices."""
    row = {name: index for index, name in enumerate(node_names(cfg))}
    column = {name: index for index, name in enumerate(_targets(cfg))}
    sources, targets = edge_ends(cfg)
    return np.array([row[name] for name in sources]), np.array([column[name] for name in targets])
