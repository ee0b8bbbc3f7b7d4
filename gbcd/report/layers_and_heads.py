"""Section: the heat map of layer against head, MLPs beside it, for every statistic and kind of part."""

from __future__ import annotations

import altair as alt
import polars as pl

from gbcd.report.charts import GROUP, Chart, Control, Section, data, key, layered
from gbcd.report.findings import Findings, Measured
from gbcd.report.methods import effects_of, truth_of
from gbcd.report.theme import SCHEME
from gbcd.report.words import by_method

#: Heads in a layer beyond which numbers in the cells would no longer be readable.
MAX_NUMBERED = 16

#: Column between heads and MLPs, empty.
GAP, MLP = " ", "MLP"

#: The choice of measure that shows what ablation finds.
EFFECT = "effect"

#: Of the picture of a model with few heads, in pixels.
MIN_WIDTH = 400

#: Pixels of a cell.
ROW, COLUMN = 34, 84

_HELP = (
    "Each cell is a head, the column at the right the MLP of its layer; the input is below. Light is much. The score "
    "is the norm of the gradient of the weights by which a component writes to the residual stream (o of a head, out "
    "of an MLP), with what the wording alone gives taken out. Compare within a row first: norms of early layers are "
    "large for any task."
)

_MEASURED = (
    " The measured effect, among the measures, is what ablation finds in the same places: its size in per cent of the "
    "gap. It was measured of whole components."
)


def section(findings: Findings) -> Section:
    """The section."""
    levels = _levels(findings)
    statistics = by_method(findings.statistics)
    if findings.measured is not None:
        statistics |= {EFFECT: "measured effect"}
    across = _across(findings)
    tables = {
        key(index, statistic, level): _cells(findings, index, statistic, level)
        for index in range(len(findings.groups))
        for statistic in statistics
        for level in levels
    }
    chart = Chart(
        "heatmap",
        "Mean over prompts, in per cent of the largest cell.",
        _picture(findings, across),
        tables,
        (GROUP, "statistic", "level"),
        {"component": "component", "rank": "rank", "mean": "mean", "low": "95 % from", "high": "95 % to"},
        max_width=max(MIN_WIDTH, COLUMN * len(across)),
    )
    controls = (Control("statistic", "Measure", statistics), Control("level", "Of", levels))
    text = _HELP if findings.measured is None else _HELP + _MEASURED
    return Section("where", "Where the behaviour lies", text, controls, (chart,))


def _levels(findings: Findings) -> dict[str, str]:
    parts = [component for component in findings.components if component.is_circuit_part]
    of = {part.part: "MLPs" if part.name.startswith("m") else "attention" for part in parts}
    return {"node": "whole components"} | {part: f"{part} of {kind}" for part, kind in of.items()}


def _cells(findings: Findings, index: int, statistic: str, level: str) -> pl.DataFrame:
    group = findings.groups[index]
    if statistic == EFFECT and findings.measured is not None:
        rows = _effects(findings.measured, group.task, level)
    else:
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


def _effects(measured: Measured, task: str, level: str) -> pl.DataFrame:
    """Sizes of effects in per cent of the gap, with bounds; none where none of that level were measured."""
    of_level = pl.col("component") == pl.col("node") if level == "node" else pl.col("part") == level
    is_measured = task in measured.effects["task"]
    rows = effects_of(measured, task, truth_of(measured, task) if is_measured else "").filter(of_level)
    low, high = (pl.col(end) * pl.col("effect").sign() for end in ("low", "high"))
    return rows.select(
        "component",
        "layer",
        pl.col("effect").abs().alias(f"{EFFECT}_mean"),
        pl.min_horizontal(low, high).alias(f"{EFFECT}_ci_low"),
        pl.max_horizontal(low, high).alias(f"{EFFECT}_ci_high"),
    )


def _column(component: str) -> str:
    """`5` of head a3.h5 and its parts, `g1` of the group a3.g1, `MLP` of m3."""
    place = component.partition(".")[2].partition(".")[0]
    return MLP if component.startswith("m") else place.removeprefix("h")


def _across(findings: Findings) -> list[str]:
    """Columns: heads, groups, an empty one, MLPs."""
    heads = [component.head for component in findings.components if component.head is not None]
    groups = sorted({_column(component.node) for component in findings.components if component.is_group}, key=len)
    return [*map(str, range(max(heads) + 1)), *groups, GAP, MLP] if heads else [MLP]


def _picture(findings: Findings, across: list[str]) -> alt.LayerChart:
    n_layers = 1 + max(component.layer for component in findings.components if component.is_circuit_part)
    columns = alt.Axis(labelAngle=0, values=[name for name in across if name != GAP])
    is_numbered = len(across) <= MAX_NUMBERED + 2
    base = (
        alt.Chart(data())
        .transform_joinaggregate(largest="max(mean)")
        .transform_calculate(
            share="datum.largest > 0 ? 100 * datum.mean / datum.largest : 0",
            interval="datum.low === null ? 'one template: no interval' : "
            "format(datum.low, '.4~g') + ' to ' + format(datum.high, '.4~g')",
        )
        .encode(
            x=alt.X("column:N", title="head", scale=alt.Scale(domain=across, paddingInner=0.05), axis=columns),
            y=alt.Y("layer:O", title="layer", scale=alt.Scale(domain=list(range(n_layers))[::-1], paddingInner=0.08)),
            tooltip=[
                alt.Tooltip("component:N"),
                alt.Tooltip("mean:Q", format=".4~g"),
                alt.Tooltip("interval:N", title="95 % interval"),
                alt.Tooltip("rank:Q"),
                alt.Tooltip("share:Q", title="% of the largest", format=".1f"),
            ],
        )
    )
    legend = alt.Legend(orient="bottom", gradientLength=200, gradientThickness=10, values=[0, 25, 50, 75, 100])
    scale = alt.Scale(scheme=SCHEME, domain=[0, 100])
    cells = base.mark_rect().encode(color=alt.Color("share:Q", title="% of the largest", scale=scale, legend=legend))
    ink = alt.when("datum.share > 48").then(alt.value("black")).otherwise(alt.value("white"))
    numbers = base.mark_text().encode(text=alt.Text("share:Q", format=".0f"), color=ink)
    return layered(
        *([cells, numbers] if is_numbered else [cells]), height=n_layers * (ROW if is_numbered else ROW - 10)
    )
