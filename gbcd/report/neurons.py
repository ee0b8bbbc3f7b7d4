"""Section: the neurons with the largest attributions."""

from __future__ import annotations

import polars as pl

from gbcd.report.charts import FIND, Chart, Column, RowHeight, Rows, Section
from gbcd.report.components import interval_picture
from gbcd.report.data import KINDS, ReportData


def section(data: ReportData) -> Section | None:
    """The section; None for a study without neurons."""
    groups = [group for group in data.groups if group.key in data.neurons and data.neurons[group.key].height]
    if not groups:
        return None
    columns = [
        Column("neuron", "component"),
        Column("attribution", "attribution", "attribution_low", "attribution_high"),
    ]
    chart = Chart(
        "neurons",
        "Neurons with the largest attributions, of the MLPs that the study names, with 95 % intervals.",
        interval_picture("attribution"),
        Rows({group.id: _rows(data.neurons[group.key]) for group in groups}, columns),
        (FIND,),
        RowHeight("component", 18),
    )
    text = "What replacing one neuron's activation by that on the reference would change. They add up to their MLP's."
    return Section("neurons", "Neurons", text, charts=(chart,))


def _rows(neurons: pl.DataFrame) -> pl.DataFrame:
    ends = {"": "mean", "_low": "ci_low", "_high": "ci_high"}
    return neurons.select(
        *(pl.col(of).alias(f"attribution{end}") for end, of in ends.items()),
        component=pl.format("{}, {}", "node", "neuron"),
        rank=pl.int_range(1, pl.len() + 1),
        kind=pl.lit(KINDS[1]),
    )
