"""The circuits of a results folder: written by the reduction, read by whoever wants them.

Each task and wrong answer has a `circuit.TASK.WRONG-ANSWER.json`; `circuit.json` is that of the study's first.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from gbcd.analysis.circuits import Circuit, Config, Selection, circuit_of_edges, circuit_of_nodes, n_edges
from gbcd.analysis.nodes import Key
from gbcd.analysis.ranking import CIRCUIT_SHARE, EDGE_SHARE
from gbcd.analysis.selection import select
from gbcd.component import file_name
from gbcd.errors import BadInput
from gbcd.run.results import summary as read_summary
from gbcd.run.store import Store

FIRST = "circuit.json"


def circuit_file(key: Key) -> str:
    """Name of the file of one task and wrong answer."""
    return file_name("circuit", *key, suffix="json")


def circuit_files(summary: pl.DataFrame, cfg: Config | None, edges: pl.DataFrame | None = None) -> dict[str, bytes]:
    """The circuits of a summary by file name.

    Args:
        summary: table `reduce.SUMMARY`.
        cfg: shape of the model; None for one without norms, as tracr compiles them, which the format cannot describe.
        edges: table `edges.edge_table`. Where there are any, circuits are made of the best `EDGE_SHARE` of
            these, else of the best `CIRCUIT_SHARE` of the nodes.
    """
    if cfg is None:
        return {}
    nodes = summary.filter(level="node").drop_nulls("rank")
    files: dict[str, bytes] = {}
    for (task, wrong_answer), rows in nodes.group_by("task", "wrong_answer", maintain_order=True):
        key = Key(str(task), str(wrong_answer))
        of_group = None if edges is None else edges.filter(task=key.task, wrong_answer=key.wrong_answer)
        scores = dict(rows.select("component", "score").iter_rows())
        if of_group is None or of_group.is_empty():
            circuit = best_nodes(cfg, rows)
        else:
            circuit = best_edges(cfg, scores, of_group)
        files[circuit_file(key)] = circuit.to_json()
    return {FIRST: next(iter(files.values())), **files} if files else {}


def best_nodes(cfg: Config, nodes: pl.DataFrame) -> Circuit:
    """The circuit of the best `CIRCUIT_SHARE` of `nodes`, which are rows of a summary."""
    scores = dict(nodes.select("component", "score").iter_rows())
    best = nodes.sort("rank").head(round(CIRCUIT_SHARE * len(nodes)))
    chosen = Selection(by="nodes", n=len(best), score=nodes["score_name"][0])
    return circuit_of_nodes(cfg, scores, best["component"].to_list(), chosen)


def best_edges(cfg: Config, scores: dict[str, float], edges: pl.DataFrame) -> Circuit:
    """The circuit of the largest `EDGE_SHARE` of the edges, without dead ends."""
    chosen = Selection(by="top", n=max(1, int(EDGE_SHARE * n_edges(cfg))), score="edges", condition="none")
    kept = select(edges, chosen.n)
    named = kept.select(pl.format("{}->{}", "source", "target").alias("edge"), "mean")
    return circuit_of_edges(cfg, scores, dict(named.iter_rows()), chosen)


def load_circuit(out: str | Path, task: str | None = None, wrong_answer: str | None = None) -> Circuit:
    """The circuit of one task and wrong answer, or a circuit file of EAP-IG, MIB or gbcd.

    It has `to_json()` (the format of EAP-IG and MIB), `to_networkx()` and `to_csv()`.

    Args:
        out: a results folder, or a `.json` file.
        task: needed where the study has several.
        wrong_answer: needed where the study has several.

    Raises:
        BadInput: there is no such circuit, or more than one that could be meant.
    """
    if str(out).endswith(".json"):
        try:
            return Circuit.from_json(Path(out).read_bytes(), str(out))
        except OSError as error:
            raise BadInput(f"circuit {str(out)!r} cannot be read: {error.strerror}") from error
    every = read_circuits(str(out))
    found = {
        key: circuit
        for key, circuit in every.items()
        if task in (None, key.task) and wrong_answer in (None, key.wrong_answer)
    }
    if len(found) == 1:
        return next(iter(found.values()))
    known = ", ".join(f"{key.task} with {key.wrong_answer}" for key in found or every)
    problem = "several circuits could be meant" if found else "there is no such circuit"
    raise BadInput(f"{str(out)!r}: {problem}; name task and wrong_answer of one of: {known or 'none'}")


def read_circuits(out: str) -> dict[Key, Circuit]:
    """All circuits of a results folder, in the order of the study; none for a model that the format cannot describe.

    Raises:
        BadInput: `out` has not been reduced, or a file is no circuit.
    """
    store = Store(out)
    rows = read_summary(out).select("task", "wrong_answer").unique(maintain_order=True).collect()
    files = {key: circuit_file(key) for key in (Key(*row) for row in rows.iter_rows())}
    return {key: Circuit.from_json(store.read(path), path) for key, path in files.items() if store.exists(path)}
