"""Faithfulness of circuits by size, from the second stage: curves, and the areas under them, as MIB defines them
(Mueller et al. 2025, arXiv 2504.13151, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float

from gbcd.evaluation.circuit_sets import SIZES, Circuits, EdgeScore, EdgeTable, Kind, Ranking, of_edges, of_nodes
from gbcd.evaluation.recovery import DIFFERENCE, Method, Score
from gbcd.evaluation.resampling import Draws
from gbcd.evaluation.tables import EDGE_FAITHFULNESS_FILE, EVALUATION_FILE, FAITHFULNESS_FILE


class Cut(NamedTuple):
    """The circuits of one score, one for each of `SIZES`: their numbers among those of the kind."""

    of: Method
    kind: Kind
    ranking: Ranking
    numbers: list[int]


def cuts(circuits: Circuits, scores: Sequence[Score], edges: Sequence[EdgeScore], table: EdgeTable | None) -> list[Cut]:
    """The circuits of every score; `circuits` takes them in."""
    found = [Cut(score.of, "nodes", "size", of_nodes(circuits, score)) for score in scores]
    if table is not None:
        for score in edges:
            rankings: tuple[Ranking, ...] = ("signed", "size") if score.of_nodes else ("signed", "size", "greedy")
            found += [Cut(score.of, "edges", one, of_edges(circuits, table, score, one)) for one in rankings]
    return found


def curves(
    draws: Draws, rows: pl.DataFrame, found: Sequence[Cut], circuits: Circuits, ranking: Method | None
) -> dict[str, list[dict[str, Any]]]:
    """Rows of the tables of faithfulness and of figures: faithfulness at every size, CPR and CMD of every cut, and the
    differences of these to the score that ranks; of edges, to what it makes of them. `rows` are of the second stage.
    """
    result: dict[str, list[dict[str, Any]]] = {FAITHFULNESS_FILE: [], EDGE_FAITHFULNESS_FILE: [], EVALUATION_FILE: []}
    clean, counterfactual = (draws.means(rows[name].to_numpy())[:, None] for name in ("clean", "counterfactual"))
    metrics = {kind: draws.means(np.array(rows[kind].to_list(), dtype=np.float64)) for kind in ("nodes", "edges")}
    # a circuit of no nodes still has the embeddings
    nothing = {"nodes": metrics["nodes"][:, :1], "edges": counterfactual}
    areas: dict[str, dict[Method, np.ndarray]] = {}
    for cut in found:
        curve = faithfulness(metrics[cut.kind][:, cut.numbers], nothing[cut.kind], clean)
        for column, size in enumerate(SIZES):
            row = {**cut.of._asdict(), "size": size, **draws.bounded("faithfulness", curve[:, column])}
            n = len(circuits.members[cut.kind][cut.numbers[column]])
            if cut.kind == "nodes":
                result[FAITHFULNESS_FILE].append({**row, "n_components": n})
            else:
                result[EDGE_FAITHFULNESS_FILE].append({**row, "ranking": cut.ranking, "n_edges": n})
        for name, values in _areas(cut, curve).items():
            areas.setdefault(name, {})[cut.of] = values
    for name, by_score in areas.items():
        for of, values in by_score.items():
            keys = {**of._asdict(), "group": "all"}
            result[EVALUATION_FILE].append({**keys, "figure": name, **draws.bounded("value", values, least(name))})
            if ranking is not None and ranking in by_score and of != ranking:
                less = draws.bounded("value", values - by_score[ranking])
                result[EVALUATION_FILE].append({**keys, "figure": name + DIFFERENCE, **less})
    return result


def _areas(cut: Cut, curve: Float[np.ndarray, "resamples sizes"]) -> dict[str, Float[np.ndarray, " resamples"]]:
    both = {"cpr": np.array([cpr(row) for row in curve]), "cmd": np.array([cmd(row) for row in curve])}
    if cut.kind == "nodes":
        return both
    if cut.ranking == "greedy":
        return {"edge_cmd_greedy": both["cmd"]}
    name = "cpr" if cut.ranking == "signed" else "cmd"
    return {f"edge_{name}": both[name]}


def faithfulness(
    metric: Float[np.ndarray, "resamples sizes"],
    nothing: Float[np.ndarray, "resamples 1"],
    everything: Float[np.ndarray, "resamples 1"],
) -> Float[np.ndarray, "resamples sizes"]:
    """Share of the model's metric that circuits recover: (m(C) - m(0)) / (m(N) - m(0))."""
    return share_of_gap(metric - nothing, everything - nothing)


def share_of_gap(
    difference: Float[np.ndarray, " *resamples"], gap: Float[np.ndarray, " *#resamples"]
) -> Float[np.ndarray, " *resamples"]:
    """`difference / gap`; NaN where there is no gap, as in a resample that drew only prompts without one."""
    gap = np.broadcast_to(gap, difference.shape)
    return np.divide(difference, gap, out=np.full(difference.shape, np.nan), where=gap != 0)


def least(figure: str) -> float:
    """Lower end of the figure's range: an area between two curves is not below 0."""
    return 0.0 if "cmd" in figure else -np.inf


def cpr(faithful: Float[np.ndarray, " sizes"]) -> float:
    """Circuit performance ratio: area under faithfulness over `SIZES`; higher is better."""
    return float(np.trapezoid(faithful, SIZES))


def cmd(faithful: Float[np.ndarray, " sizes"]) -> float:
    """Circuit-model distance: area between faithfulness and 1 over `SIZES`; lower is better."""
    return float(np.trapezoid(np.abs(1 - faithful), SIZES))
