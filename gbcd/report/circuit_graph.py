"""Section: the circuit as a graph, input at the bottom, layer above layer."""

from __future__ import annotations

from typing import Any, NamedTuple

import altair as alt
import numpy as np
import polars as pl

from gbcd.analysis.circuit_files import read_circuits
from gbcd.analysis.circuits import INPUT, LOGITS, Circuit, Config, ends
from gbcd.analysis.ranking import CIRCUIT_SHARE
from gbcd.analysis.shard_values import Key
from gbcd.evaluation.tables import edges_file
from gbcd.report.charts import GROUP, KINDS, Chart, Section, by_kind, data, key, layered
from gbcd.report.findings import Findings
from gbcd.report.layers_and_heads import COLUMN, MIN_WIDTH
from gbcd.report.methods import of_group
from gbcd.report.theme import EDGE, INSIDE
from gbcd.report.words import method

#: Edges that are drawn, highest scores first; in a circuit of whole heads every node is joined to every later one.
DRAWN = 60

_HELP = (
    f"The best {CIRCUIT_SHARE:.0%} of the components by score, laid out as in the heat map: heads in their columns, "
    "the MLP of a layer at the right, the input below. Lines are edges through the residual stream, "
)
_SCORED = "scored by edge attribution; an edge that harms is dashed."
_NOT_SCORED = "with the smaller of their ends' scores; gbcd evaluate gives them scores of their own."

#: The estimate that the circuit is held against.
BESIDE = "attribution_patching"

#: Pixels for a layer, and of the whole picture.
LAYER, LEAST, MOST = 72, 320, 1400

#: Share of a column by which a line bends around what stands between its ends.
BEND = 0.45


class _Place(NamedTuple):
    """Where a node is drawn, in columns and layers."""

    x: float
    y: float


def section(findings: Findings) -> Section | None:
    """The section; None for a model whose circuits are not written."""
    scored = _with_scored_edges(findings)
    circuits = read_circuits(findings.store.location) | scored
    found = {key(index): circuits[group] for index, group in enumerate(findings.groups) if group in circuits}
    if not found:
        return None
    cfg = next(iter(found.values())).cfg
    chart = Chart(
        "circuit",
        f"Circles are heads with their number, squares MLPs; thicker lines are higher scores, {DRAWN} at most are "
        "drawn.",
        _picture(cfg),
        {name: _rows(circuit) for name, circuit in found.items()},
        (GROUP,),
        {"name": "node or edge", "kind": "kind", "score": "score"},
        max_width=max(MIN_WIDTH, COLUMN * (cfg.n_heads + 2)),
    )
    kept = {name: said for name in found if (said := _kept(findings, findings.groups[int(name)]))}
    text = _HELP + (_SCORED if scored else _NOT_SCORED)
    return Section("circuit", "The circuit", text, charts=(chart,), text_by_group=kept)


def _kept(findings: Findings, group: Key) -> str | None:
    """How much of the gap the best components keep when all others are replaced; None where that was not measured."""
    if findings.measured is None or not findings.measured.has_nodes(group.task):
        return None
    sized = of_group(findings.measured.faithfulness, group).filter(
        pl.col("size") == CIRCUIT_SHARE, pl.col("faithfulness").is_finite()
    )
    rows = {row["method"]: row for row in sized.iter_rows(named=True)}
    if (score := rows.get(findings.ranked_by[group])) is None:
        return None
    n = score["n_components"]
    best = "component by score keeps" if n == 1 else f"{n} components by score keep"
    beside = rows.get(BESIDE)
    compared = f"; the same number by {method(BESIDE)} keeps {_share(beside)}" if beside else ""
    return f"Alone, the best {best} {_share(score)}{compared}."


def _share(row: dict[str, Any]) -> str:
    low, high = row["ci_low"], row["ci_high"]
    bounds = ""
    if low is not None and high is not None and np.isfinite([low, high]).all():
        bounds = f" [{round(100 * low)}, {round(100 * high)}]"
    return f"{round(100 * row['faithfulness'])} % of the gap{bounds}"


def _with_scored_edges(findings: Findings) -> dict[Key, Circuit]:
    """Circuits that an evaluation has written."""
    paths = {group: edges_file(group.task, group.wrong_answer) for group in findings.groups}
    store = findings.store
    return {group: Circuit.from_json(store.read(path), path) for group, path in paths.items() if store.exists(path)}


def _picture(cfg: Config) -> alt.LayerChart:
    base = alt.Chart(data())
    x = alt.X("x:Q", axis=None, scale=alt.Scale(domain=[-0.6, cfg.n_heads + 1.1], nice=False, zero=False))
    layers = alt.Axis(values=[2 * layer for layer in range(cfg.n_layers)], labelExpr="datum.value / 2", grid=False)
    y = alt.Y("y:Q", title="layer", axis=layers, scale=alt.Scale(domain=[-2, 2 * cfg.n_layers], nice=False, zero=False))
    edges = (
        base.transform_filter("datum.kind === 'edge'")
        .transform_calculate(
            step="[0, 1, 2, 3]",
            px="[datum.x, datum.x + datum.bend, datum.x2 + datum.bend, datum.x2]",
            py="[datum.y, 0.6 * datum.y + 0.4 * datum.y2, 0.4 * datum.y + 0.6 * datum.y2, datum.y2]",
        )
        .transform_flatten(["step", "px", "py"])
        .mark_line(opacity=0.5, color=EDGE, interpolate="basis")
        .encode(
            x=alt.X("px:Q", axis=None),
            y=alt.Y("py:Q", title="layer", axis=layers),
            detail="name:N",
            order="step:Q",
            strokeWidth=alt.StrokeWidth("weight:Q", scale=None, legend=None),
            strokeDash=alt.when("datum.score < 0").then(alt.value([5, 3])).otherwise(alt.value([1, 0])),
        )
    )
    nodes = base.transform_filter("datum.kind !== 'edge'").encode(x=x, y=y)
    tooltip = ["name:N", alt.Tooltip("score:Q", format=".4~g")]
    parts = nodes.transform_filter("datum.kind !== 'end'")
    points = by_kind(parts.mark_point(filled=True, size=420, opacity=1)).encode(tooltip=tooltip)
    ends = [
        nodes.transform_filter(f"datum.name === '{name}'").mark_text(fontSize=12, dy=away).encode(text="name:N")
        for name, away in ((INPUT, 10), (LOGITS, -10))
    ]
    numbers = parts.mark_text(style=INSIDE, fontWeight="bold").encode(text="inside:N", tooltip=tooltip)
    return layered(edges, points, numbers, *ends, height=min(MOST, max(LEAST, LAYER * (cfg.n_layers + 1))))


def _rows(circuit: Circuit) -> pl.DataFrame:
    n_heads = circuit.cfg.n_heads
    places = {name: _place(name, circuit.cfg) for name, node in circuit.nodes.items() if node.in_graph}
    rows: list[dict[str, object]] = []
    for (source, target), score in _edges(circuit)[:DRAWN]:
        start, stop = places[source], places[target]
        line = {"x": start.x, "y": start.y, "x2": stop.x, "y2": stop.y, "bend": _bend(start, stop, n_heads)}
        rows.append({"name": f"{source} → {target}", "kind": "edge", "score": score, **line})
    for name, place in places.items():
        kind = "end" if name in (INPUT, LOGITS) else KINDS[name.startswith("m")]
        inside = "m" if name.startswith("m") else name.partition(".")[2].removeprefix("h")
        score = circuit.nodes[name].score
        rows.append({"name": name, "kind": kind, "inside": inside, "score": score, "x": place.x, "y": place.y})
    texts, numbers = ("name", "kind", "inside"), ("score", "x", "y", "x2", "y2", "bend")
    schema = {**dict.fromkeys(texts, pl.String), **dict.fromkeys(numbers, pl.Float64)}
    size = pl.when(pl.col("kind") == "edge").then(pl.col("score").abs())
    return pl.DataFrame(rows, schema=schema).with_columns(weight=0.75 + 4 * (size / size.max()).fill_nan(0))


def _place(name: str, cfg: Config) -> _Place:
    """Heads of a layer in a row, its MLP a little above them at the right, input and logits in the middle."""
    if name in (INPUT, LOGITS):
        return _Place(cfg.n_heads / 2, -1.5 if name == INPUT else 2 * cfg.n_layers - 0.25)
    layer, _, head = name[1:].partition(".h")
    return _Place(float(head), 2.0 * int(layer)) if head else _Place(cfg.n_heads + 0.5, 2.0 * int(layer) + 0.7)


def _bend(start: _Place, stop: _Place, n_heads: int) -> float:
    """Lines along a column go around what stands in it: those of MLPs at the right, those of heads at the left."""
    if start.x != stop.x or stop.y - start.y <= 2:
        return 0.0
    return BEND if start.x > n_heads else -BEND


def _edges(circuit: Circuit) -> list[tuple[tuple[str, str], float]]:
    """Edges inside the circuit, largest first; those into q, k and v of a head are one, with the largest score."""
    best: dict[tuple[str, str], float] = {}
    for name, edge in circuit.edges.items():
        if edge.in_graph:
            pair = ends(name)
            best[pair] = max(edge.score, best.get(pair, 0.0), key=abs)
    return sorted(best.items(), key=lambda entry: -abs(entry[1]))
