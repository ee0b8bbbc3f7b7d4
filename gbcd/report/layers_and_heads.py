"""Section: the heat map of layer against head, MLPs beside it, for every statistic and kind of part."""

from __future__ import annotations

import altair as alt
import polars as pl

from gbcd.report.charts import GROUP, SCHEME, Chart, Control, Section, data, key, layered
from gbcd.report.findings import Findings

#: Heads in a layer beyond which numbers in the cells would no longer be readable.
MAX_NUMBERED = 16

#: Column between heads and MLPs, empty.
GAP, MLP = " ", "MLP"

STATISTIC_LABELS = {
    "writing_norm": "score: centred norm of o or out",
    "centered_grad_norm": "centred gradient norm",
    "grad_norm": "gradient norm",
    "taylor": "Taylor score, absolute",
}

_HELP = (
    "Rows are layers, the input below; columns are heads, with the MLP of the layer at the right. The number in a cell "
    "is its mean over prompts in per cent of the largest; choose what is measured and of which part of a component. "
    "The score is the norm of the gradient of the weights by which a component writes to the residual stream (o of a "
    "head, out of an MLP), its inputs less their mean over prompts alike: what the wording alone gives is taken out."
)


def section(findings: Findings) -> Section:
    """The section."""
    levels = _levels(findings)
    statistics = {name: STATISTIC_LABELS[name] for name in findings.statistics}
    tables = {
        key(index, statistic, level): _cells(findings, index, statistic, level)
        for index in range(len(findings.groups))
        for statistic in statistics
        for level in levels
    }
    chart = Chart(
        "heatmap",
        "Mean over prompts, by layer and head, in per cent of the largest.",
        _picture(findings),
        tables,
        (GROUP, "statistic", "level"),
        {"component": "component", "rank": "rank", "mean": "mean", "low": "95 % from", "high": "95 % to"},
    )
    controls = (Control("statistic", "Measure", statistics), Control("level", "Of", levels))
    return Section("where", "Where the behaviour lies", _HELP, controls, (chart,))


def _levels(findings: Findings) -> dict[str, str]:
    parts = [component for component in findings.components if component.is_circuit_part]
    of = {part.part: "MLPs" if part.name.startswith("m") else "attention" for part in parts}
    return {"node": "whole components"} | {part: f"{part} of {kind}" for part, kind in of.items()}


def _cells(findings: Findings, index: int, statistic: str, level: str) -> pl.DataFrame:
    group = findings.groups[index]
    rows = findings.nodes(group) if level == "node" else findings.parts(group).filter(pl.col("part") == level)
    return (
        rows.filter(pl.col(f"{statistic}_mean").is_finite())
        .select(
            "component",
            "layer",
            column=pl.col("component").map_elements(_column, pl.String),
            mean=f"{statistic}_mean",
            low=f"{statistic}_ci_low",
            high=f"{statistic}_ci_high",
        )
        .with_columns(rank=pl.col("mean").rank("ordinal", descending=True))
        .sort("rank")
    )


def _column(component: str) -> str:
    """`5` of head a3.h5 and its parts, `g1` of the group a3.g1, `MLP` of m3."""
    place = component.partition(".")[2].partition(".")[0]
    return MLP if component.startswith("m") else place.removeprefix("h")


def _picture(findings: Findings) -> alt.LayerChart:
    heads = [component.head for component in findings.components if component.head is not None]
    layers = [component.layer for component in findings.components if component.is_circuit_part]
    groups = sorted({_column(component.node) for component in findings.components if component.is_group}, key=len)
    across = [*map(str, range(max(heads) + 1)), *groups, GAP, MLP] if heads else [MLP]
    base = (
        alt.Chart(data())
        .transform_joinaggregate(largest="max(mean)")
        .transform_calculate(
            share="datum.largest > 0 ? 100 * datum.mean / datum.largest : 0",
            interval="datum.low === null ? 'one template: no interval' : "
            "format(datum.low, '.4~g') + ' to ' + format(datum.high, '.4~g')",
        )
        .encode(
            x=alt.X("column:N", title="head", scale=alt.Scale(domain=across), axis=alt.Axis(labelAngle=0)),
            y=alt.Y("layer:O", title="layer", scale=alt.Scale(domain=list(range(max(layers), -1, -1)))),
            tooltip=[
                alt.Tooltip("component:N"),
                alt.Tooltip("mean:Q", format=".4~g"),
                alt.Tooltip("interval:N", title="95 % interval"),
                alt.Tooltip("rank:Q"),
                alt.Tooltip("share:Q", title="% of the largest", format=".1f"),
            ],
        )
    )
    colour = alt.Color(
        "share:Q",
        title="% of the largest",
        scale=alt.Scale(scheme=SCHEME, domain=[0, 100]),
        legend=alt.Legend(orient="bottom", gradientLength=200),
    )
    cells = base.mark_rect(stroke=None).encode(color=colour)
    if len(across) > MAX_NUMBERED + 2:
        return layered(alt.Step(22), cells)
    ink = alt.when("datum.share > 55").then(alt.value("black")).otherwise(alt.value("white"))
    numbers = base.mark_text(fontSize=10).encode(text=alt.Text("share:Q", format=".0f"), color=ink)
    return layered(alt.Step(30), cells, numbers)
