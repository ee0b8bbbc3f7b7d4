"""Section: the circuit as a graph, input at the bottom, layer above layer."""

from __future__ import annotations

from typing import NamedTuple

import altair as alt
import polars as pl

from gbcd.reduction.circuits import INPUT, LOGITS, Circuit, ends
from gbcd.reduction.stored_circuits import read_circuits
from gbcd.report.charts import COLOURS, GROUP, KINDS, SHAPES, Chart, Section, data, key, layered
from gbcd.report.findings import Findings

#: Edges that are drawn, highest scores first; in a circuit of whole heads every node is joined to every later one.
DRAWN = 60

_HELP = (
    "The nodes whose scores are highest, between input and logits. A line is an edge of the residual stream."
    " Unless edges were scored themselves, an edge has the smaller of its ends' scores."
)


class _Place(NamedTuple):
    """Where a node is drawn."""

    x: float
    y: float


def section(findings: Findings) -> Section | None:
    """The section; None for a model whose circuits are not written."""
    circuits = read_circuits(findings.store.location)
    tables = {key(index): _rows(circuits[group]) for index, group in enumerate(findings.groups) if group in circuits}
    if not tables:
        return None
    base = alt.Chart(data())
    x = alt.X("x:Q", axis=None)
    y = alt.Y("y:Q", axis=None)
    edges = (
        base.transform_filter("datum.kind === 'edge'")
        .mark_rule(opacity=0.45, color="#888888")
        .encode(x=x, y=y, x2="x2:Q", y2="y2:Q", strokeWidth=alt.StrokeWidth("weight:Q", scale=None, legend=None))
    )
    nodes = base.transform_filter("datum.kind !== 'edge'")
    kinds, legend = [*KINDS, "end"], alt.Legend(orient="bottom")
    colours = alt.Scale(domain=kinds, range=[*COLOURS[:2], "#888888"])
    shapes = alt.Scale(domain=kinds, range=[*SHAPES[:2], "diamond"])
    points = nodes.mark_point(filled=True, size=240, opacity=1).encode(
        x=x,
        y=y,
        color=alt.Color("kind:N", title=None, legend=legend, scale=colours),
        shape=alt.Shape("kind:N", title=None, legend=legend, scale=shapes),
        tooltip=["name:N", alt.Tooltip("score:Q", format=".4~g")],
    )
    names = nodes.mark_text(dx=11, align="left", fontSize=11).encode(x=x, y=y, text="name:N")
    chart = Chart(
        "circuit",
        "Heads are circles, MLPs squares; a thicker line is a higher score.",
        layered(420, edges, points, names),
        tables,
        (GROUP,),
        {"name": "node or edge", "kind": "kind", "score": "score"},
    )
    return Section("circuit", "The circuit", _HELP, charts=(chart,))


def _rows(circuit: Circuit) -> pl.DataFrame:
    places = _places(circuit)
    rows: list[dict[str, object]] = []
    for (source, target), score in _edges(circuit)[:DRAWN]:
        start, stop = places[source], places[target]
        line = {"x": start.x, "y": start.y, "x2": stop.x, "y2": stop.y}
        rows.append({"name": f"{source} → {target}", "kind": "edge", "score": score, **line})
    for name, place in places.items():
        kind = "end" if name in (INPUT, LOGITS) else KINDS[name.startswith("m")]
        rows.append({"name": name, "kind": kind, "score": circuit.nodes[name].score, "x": place.x, "y": place.y})
    numbers = ("score", "x", "y", "x2", "y2")
    table = pl.DataFrame(rows, schema={"name": pl.String, "kind": pl.String, **dict.fromkeys(numbers, pl.Float64)})
    share = pl.col("score").abs() / pl.col("score").abs().max()
    return table.with_columns(weight=pl.when(pl.col("kind") == "edge").then(0.5 + 2.5 * share.fill_null(0)))


def _places(circuit: Circuit) -> dict[str, _Place]:
    """Nodes of a layer side by side in order of head, its MLP above them, input and logits in the middle."""
    rows: dict[float, list[str]] = {}
    for name, node in circuit.nodes.items():
        if node.in_graph:
            rows.setdefault(_height(name, circuit.cfg.n_layers), []).append(name)
    return {
        name: _Place((position + 1) / (len(row) + 1), height)
        for height, row in rows.items()
        for position, name in enumerate(row)
    }


def _height(name: str, n_layers: int) -> float:
    if name in (INPUT, LOGITS):
        return -1.0 if name == INPUT else 2.0 * n_layers
    layer = int(name[1:].split(".")[0])
    return 2.0 * layer + (1.0 if name.startswith("m") else 0.0)


def _edges(circuit: Circuit) -> list[tuple[tuple[str, str], float]]:
    """Edges inside the circuit, those into q, k and v of a head as one with the largest of their scores, best first."""
    best: dict[tuple[str, str], float] = {}
    for name, edge in circuit.edges.items():
        if edge.in_graph:
            pair = ends(name)
            best[pair] = max(edge.score, best.get(pair, edge.score))
    return sorted(best.items(), key=lambda entry: -entry[1])
