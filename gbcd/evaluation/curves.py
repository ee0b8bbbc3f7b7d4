"""Faithfulness of circuits by size, from the second stage: curves, and the areas under them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float

from gbcd.evaluation.agreement import SIZES, cmd, cpr, faithfulness
from gbcd.evaluation.circuit_sets import Circuits, EdgeScore, EdgeTable, Kind, Ranking, of_edges, of_nodes
from gbcd.evaluation.recovery import DIFFERENCE, Score
from gbcd.evaluation.resampling import Draws


class Cut(NamedTuple):
    """The circuits of one score, one for each of `SIZES`: their numbers among those of the kind."""

    score: Score | EdgeScore
    kind: Kind
    ranking: Ranking
    numbers: list[int]


def cuts(circuits: Circuits, scores: Sequence[Score], edges: Sequence[EdgeScore], table: EdgeTable | None) -> list[Cut]:
    """The circuits of every score; `circuits` takes them in."""
    found = [Cut(score, "nodes", "size", of_nodes(circuits, score)) for score in scores]
    for score in edges if table is not None else ():
        assert table is not None
        rankings: tuple[Ranking, ...] = ("signed", "size") if score.of_nodes else ("signed", "size", "greedy")
        found += [Cut(score, "edges", ranking, of_edges(circuits, table, score, ranking)) for ranking in rankings]
    return found


class Curves(NamedTuple):
    """Rows of the tables of faithfulness, of nodes and of edges, and of figures."""

    nodes: list[dict[str, Any]]
    edges: list[dict[str, Any]]
    figures: list[dict[str, Any]]


def curves(draws: Draws, rows: pl.DataFrame, found: Sequence[Cut], circuits: Circuits, ranking: Score | None) -> Curves:
    """Faithfulness at every size, CPR and CMD, for every cut; `rows` are those of the second stage."""
    result = Curves([], [], [])
    clean, counterfactual = (draws.means(rows[name].to_numpy())[:, None] for name in ("clean", "counterfactual"))
    metrics = {kind: draws.means(np.array(rows[kind].to_list(), dtype=np.float64)) for kind in ("nodes", "edges")}
    # a circuit of no nodes still has the embeddings
    nothing = {"nodes": metrics["nodes"][:, :1], "edges": counterfactual}
    areas: dict[str, dict[_Key, np.ndarray]] = {}
    for cut in found:
        curve = faithfulness(metrics[cut.kind][:, cut.numbers], nothing[cut.kind], clean)
        for column, size in enumerate(SIZES):
            row = {"size": size, **draws.bounded("faithfulness", curve[:, column])}
            n = len(circuits.members[cut.kind][cut.numbers[column]])
            if cut.kind == "nodes":
                result.nodes.append({**cut.score.keys, "n_components": n, **row})
            else:
                result.edges.append({**cut.score.keys, "ranking": cut.ranking, "n_edges": n, **row})
        for name, values in _areas(cut, curve).items():
            areas.setdefault(name, {})[_key(cut.score)] = values
            row = {**cut.score.keys, "group": "all", "figure": name}
            result.figures.append({**row, **draws.bounded("value", values)})
    _add_differences(result, areas, ranking, draws)
    return result


def _areas(cut: Cut, curve: Float[np.ndarray, "resamples sizes"]) -> dict[str, Float[np.ndarray, " resamples"]]:
    both = {"cpr": np.array([cpr(row) for row in curve]), "cmd": np.array([cmd(row) for row in curve])}
    if cut.kind == "nodes":
        return both
    if cut.ranking == "greedy":
        return {"edge_cmd_greedy": both["cmd"]}
    name = "cpr" if cut.ranking == "signed" else "cmd"
    return {f"edge_{name}": both[name]}


def _add_differences(
    result: Curves, areas: Mapping[str, Mapping[_Key, np.ndarray]], ranking: Score | None, draws: Draws
) -> None:
    """To the score that ranks; of edges, to what it makes of them."""
    if ranking is None:
        return
    base = _key(ranking)
    for name, by_score in areas.items():
        for key, values in by_score.items():
            if base in by_score and key != base:
                row = {**dict(key), "group": "all", "figure": name + DIFFERENCE}
                result.figures.append({**row, **draws.bounded("value", values - by_score[base])})


_Key = tuple[tuple[str, Any], ...]


def _key(score: Score | EdgeScore) -> _Key:
    return tuple(score.keys.items())
