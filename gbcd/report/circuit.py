"""Sections: the largest edges as a graph, input below, layer above layer; and the largest neurons."""

from __future__ import annotations

from typing import Any, NamedTuple

import altair as alt
import polars as pl

from gbcd.analysis.circuits import INPUT, LOGITS
from gbcd.analysis.selection import select
from gbcd.report.charts import BASE, FIND, INSIDE, SHAPES, Chart, RowHeight, Rows, Section, layered, ring
from gbcd.report.components import interval_chart
from gbcd.report.data import KINDS, Group, ReportData, ends, interval

#: Edges that are drawn at most, and from how many to start: some are dead ends, or lead to one head.
DRAWN, SELECTED = 60, 90

#: Pixels for a layer; widths of lines from the weakest to the strongest edge.
LAYER, THIN, THICK = 50, 0.75, 5.0

#: Signs, by colour; lines and outlines of the second are dashed.
SIGNS = ["above zero", "below zero"]

_NUMBERS = ("x", "y", "x2", "y2", "bend", "score", "score_low", "score_high", "effect", "width")


class _Place(NamedTuple):
    """Where a node is drawn: between 0 and 1 from left to right, and how many layers that are drawn lie below."""

    x: float
    y: int


def section(data: ReportData) -> Section | None:
    """The section; None where no edge has a score."""
    groups = [group for group in data.groups if group.key in data.edges and data.edges[group.key].height]
    if not groups:
        return None
    columns = {"node or edge": "component", "score": "score", "effect, %": "effect"}
    chart = Chart(
        "circuit",
        f"The largest edges that lead from the input to the logits, {DRAWN} at most; layers are numbered at the "
        "left. Circles are heads with their number, squares MLPs; blue is above zero, orange and dashed "
        "below.",
        _picture(),
        Rows({group.id: _rows(group, data.edges[group.key]) for group in groups}, columns),
        (FIND,),
        RowHeight("y", LAYER),
    )
    text = (
        "What passes information to what: an edge's score is the first-order effect of replacing, at its target alone, "
        "what its source hands over."
    )
    signs = {group.id: [_signs(group, data.edges[group.key])] for group in groups}
    return Section("circuit", "The circuit", text, signs, charts=(chart,))


def _signs(group: Group, edges: pl.DataFrame) -> str:
    """What blue and orange say; edges without intervals are those that an evaluation scored, by the task's metric."""
    if edges["ci_low"].is_not_null().any():
        return f"By {group.key.wrong_answer}: {group.sign}; so does an edge."
    return (
        f"Heads and MLPs are by {group.key.wrong_answer}: {group.sign}. Edges are by the metric of the task, as the "
        "evaluation scored them: above zero an edge works for the right answer, below zero against it."
    )


def _rows(group: Group, edges: pl.DataFrame) -> pl.DataFrame:
    best = _drawn(edges)
    n_heads = 1 + max(group.nodes["head"].drop_nulls().to_list(), default=0)
    places = _places(list(dict.fromkeys([*best["source"], *best["target"]])), n_heads)
    largest = max(best["score"].abs().to_list()) or 1.0
    rows: list[dict[str, object]] = []
    for edge in best.iter_rows(named=True):
        source, target, score = edge.pop("source"), edge.pop("target"), edge["score"]
        start, stop = places[source], places[target]
        width = THIN + (THICK - THIN) * abs(score) / largest
        line = {"x": start.x, "y": start.y, "x2": stop.x, "y2": stop.y, "bend": _bend(start, stop), "width": width}
        rows.append({"component": f"{source} → {target}", "kind": "edge", "sign": SIGNS[score < 0], **edge, **line})
    scores = {row["component"]: row for row in group.scores.iter_rows(named=True)}
    rows += [_node(name, place, scores.get(name, {})) for name, place in places.items()]
    layers = {str(_layer(name)): place.y for name, place in places.items() if name not in (INPUT, LOGITS)}
    rows += [dict[str, object](kind="layer", inside=name, x=-0.08, y=y) for name, y in layers.items()]
    texts = ("component", "kind", "sign", "inside")
    return pl.DataFrame(rows, schema={**dict.fromkeys(texts, pl.String()), **dict.fromkeys(_NUMBERS, pl.Float64())})


def _drawn(edges: pl.DataFrame) -> pl.DataFrame:
    """Edges from the logits on, as far as the input, or where none lead so far the largest.

    Those into the query, key and value of a head are one, with the largest score.
    """
    size = pl.col("mean").abs()
    found = select(edges, SELECTED, "greedy")
    chosen = found if found.height else edges.sort(size, descending=True).head(DRAWN)
    return (
        chosen.with_columns(target=pl.col("target").str.replace(r"<[qkv]>$", ""))
        .sort(size, descending=True)
        .unique(["source", "target"], keep="first", maintain_order=True)
        .select("source", "target", *interval("score"))
        .head(DRAWN)
    )


def _node(name: str, place: _Place, scores: dict[str, Any]) -> dict[str, object]:
    if name in (INPUT, LOGITS):
        return {"component": name, "kind": "end", "inside": name, "x": place.x, "y": place.y}
    score = scores.get("attribution")
    score = scores.get("score") if score is None else score
    bounds = {f"score{end}": scores.get(f"attribution{end}") for end in ("_low", "_high")}
    said = {"score": score, **bounds, "effect": scores.get("effect"), "sign": SIGNS[(score or 0) < 0]}
    is_mlp = name.startswith("m")
    inside = "m" if is_mlp else name.partition(".")[2].removeprefix("h")
    return {"component": name, "kind": "MLP" if is_mlp else "attention", "inside": inside, **said, **place._asdict()}


def _places(names: list[str], n_heads: int) -> dict[str, _Place]:
    """Heads in the columns that they have in the heat map, MLPs at the right, input and logits in the middle."""
    layers = sorted({_layer(name) for name in names})

    def across(name: str) -> float:
        head = name.partition(".h")[2]
        return 0.92 * (int(head) + 0.5) / n_heads if head else 0.97 if name.startswith("m") else 0.46

    return {name: _Place(across(name), layers.index(_layer(name))) for name in names}


def _layer(name: str) -> int:
    """Layer of a node; the input lies below all, the logits above."""
    if name in (INPUT, LOGITS):
        return -1 if name == INPUT else 1_000_000
    return int(name[1:].partition(".")[0])


def _bend(start: _Place, stop: _Place) -> float:
    """Lines straight up go around what stands between their ends: those of MLPs at the right, others at the left."""
    if abs(start.x - stop.x) > 0.02 or stop.y - start.y < 2:
        return 0.0
    return 0.04 if start.x > 0.9 else -0.06


def _picture() -> alt.LayerChart:
    across, up = alt.Scale(domain=[-0.1, 1.02], nice=False), alt.Scale(padding=18, nice=False, zero=False)
    legend = alt.Legend(orient="bottom")
    colour = alt.Color("sign:N", title=None, scale=alt.Scale(domain=SIGNS), legend=legend)
    dash = alt.when(f"datum.sign === '{SIGNS[1]}'").then(alt.value([5, 3])).otherwise(alt.value([1, 0]))
    edges = (
        BASE.transform_filter("datum.kind === 'edge'")
        .transform_calculate(
            step="[0, 1, 2, 3]",
            px="[datum.x, datum.x + datum.bend, datum.x2 + datum.bend, datum.x2]",
            py="[datum.y, 0.6 * datum.y + 0.4 * datum.y2, 0.4 * datum.y + 0.6 * datum.y2, datum.y2]",
        )
        .transform_flatten(["step", "px", "py"])
        .mark_line(opacity=0.55, interpolate="basis")
        .encode(
            x=alt.X("px:Q", axis=None, scale=across),
            y=alt.Y("py:Q", axis=None, scale=up),
            detail="component:N",
            order="step:Q",
            color=colour,
            strokeDash=dash,
            strokeWidth=alt.StrokeWidth("width:Q", scale=None, legend=None),
        )
    )
    placed = BASE.encode(x=alt.X("x:Q", axis=None, scale=across), y=alt.Y("y:Q", axis=None, scale=up))
    numbers = [alt.Tooltip(f"{name}:Q", format=".3~g") for name in ("score", *ends("score"), "effect")]
    nodes = placed.transform_filter("datum.kind === 'attention' || datum.kind === 'MLP'").encode(
        tooltip=["component:N", *numbers]
    )
    shape = alt.Shape("kind:N", legend=None, scale=alt.Scale(domain=["attention", "MLP"], range=SHAPES))
    points = nodes.mark_point(filled=True, size=420, opacity=1).encode(color=colour, shape=shape)
    is_against = alt.when(f"datum.sign === '{SIGNS[1]}'").then(alt.value(1)).otherwise(alt.value(0))
    outline = nodes.mark_point(size=620, strokeDash=[4, 3]).encode(color=colour, shape=shape, opacity=is_against)
    inside = nodes.mark_text(style=INSIDE, fontWeight="bold").encode(text="inside:N")
    outer = placed.transform_filter("datum.kind === 'end'").mark_text(fontSize=12).encode(text="inside:N")
    layers = placed.transform_filter("datum.kind === 'layer'").mark_text(align="left").encode(text="inside:N")
    return layered(edges, outline, points, ring(nodes, 800), inside, outer, layers)


def neurons(data: ReportData) -> Section | None:
    """The neurons with the largest attributions; None for a study without neurons."""
    groups = [group for group in data.groups if group.key in data.neurons and data.neurons[group.key].height]
    if not groups:
        return None
    chart = interval_chart(
        "neurons",
        "Neurons with the largest attributions, of the MLPs that the study names, with 95 % intervals.",
        "attribution",
        {group.id: _of_neurons(data.neurons[group.key]) for group in groups},
        what="neuron",
    )
    text = "What a neuron's activation adds to the loss, in place of that on the reference. They add up to their MLP's."
    return Section("neurons", "Neurons", text, charts=(chart,))


def _of_neurons(neurons: pl.DataFrame) -> pl.DataFrame:
    named = {"component": pl.format("{}, {}", "node", "neuron"), "rank": pl.int_range(1, pl.len() + 1)}
    return neurons.select(*interval("attribution"), **named, kind=pl.lit(KINDS[1]))
