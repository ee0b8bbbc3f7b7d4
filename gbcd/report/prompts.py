"""Section: how the scores of the best components spread over prompts and templates, and the prompts at either end."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import polars as pl
from jaxtyping import Float

from gbcd.analysis.shard_values import Key
from gbcd.report.charts import (
    GROUP,
    Chart,
    Column,
    Control,
    RowHeight,
    Rows,
    Section,
    Table,
    data_set,
    key,
    layered,
)
from gbcd.report.data import ReportData, label, number

#: Components with a choice of their own, bars of a histogram, templates that are drawn.
CHOSEN, BINS, MAX_TEMPLATES = 12, 40, 30

#: Answers that are shown of a set.
ANSWERS = 3

#: Of the prompts of a template.
QUANTILES = {"p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}

#: The control of the section.
COMPONENT = "component"


def section(data: ReportData) -> Section | None:
    """The section; None where no sample of prompts was kept."""
    samples = {
        key(index): data.samples[group]
        for index, group in enumerate(data.groups)
        if group in data.samples and len(data.samples[group].values)
    }
    if not samples:
        return None
    names: dict[str, dict[str, str]] = {}
    histograms: dict[str, pl.DataFrame] = {}
    templates: dict[str, pl.DataFrame] = {}
    for index, group in enumerate(data.groups):
        sample = samples.get(key(index))
        best = [] if sample is None else [name for name in data.nodes(group)["component"] if name in sample.names]
        names[key(index)] = {str(number): name for number, name in enumerate(best[:CHOSEN])}
        for place, name in names[key(index)].items():
            assert sample is not None
            values = sample.values[:, sample.names.index(name)].astype(np.float64)
            histograms[key(index, place)] = _histogram(values)
            templates[key(index, place)] = _quantiles(values, sample.templates)
    sizes = [len(sample.values) for sample in samples.values()]
    score = " or ".join(dict.fromkeys(label(data.score_name(group)) for group in data.groups))
    ends = {key(index): _extremes(data, group) for index, group in enumerate(data.groups)}
    return Section(
        "prompts",
        "Over prompts and templates",
        f"Does a component serve all prompts, or a few kinds of them? {score.capitalize()} of single prompts, of a "
        f"random sample of up to {max(sizes):,}; at the end the prompts whose values over all components are largest "
        "and smallest.",
        controls=(Control(COMPONENT, "Component", names["0"], names),),
        charts=(_histogram_chart(histograms), _template_chart(templates)),
        tables_by_group={name: table for name, table in ends.items() if table is not None},
    )


def _histogram_chart(tables: dict[str, pl.DataFrame]) -> Chart:
    picture = (
        alt.Chart(data_set())
        .mark_bar(binSpacing=1)
        .encode(
            x=alt.X("low:Q", bin="binned", title="of a single prompt"),
            x2="high:Q",
            y=alt.Y("prompts:Q", title="prompts"),
            y2=alt.datum(0),
            tooltip=["low:Q", "high:Q", "prompts:Q"],
        )
        .properties(height=200)
    )
    columns = [Column("from", "low"), Column("to", "high"), Column("prompts", "prompts")]
    caption = "How many prompts give which value: two humps are two behaviours."
    return Chart("distribution", caption, picture, Rows(tables, columns, (GROUP, COMPONENT)), is_half=True)


def _template_chart(tables: dict[str, pl.DataFrame]) -> Chart:
    order = alt.EncodingSortField("p50", order="descending")
    base = alt.Chart(data_set()).encode(y=alt.Y("template:N", sort=order, title=None, axis=alt.Axis(labelLimit=110)))
    scale, title = alt.Scale(zero=True), "of a single prompt"
    picture = layered(
        base.mark_rule().encode(x=alt.X("p05:Q", scale=scale, title=title), x2="p95:Q"),
        base.mark_bar(size=7).encode(x=alt.X("p25:Q", title=title), x2="p75:Q"),
        base.mark_tick(thickness=3, size=15, opacity=1).encode(
            x=alt.X("p50:Q", title=title), tooltip=["template:N", "n:Q", *(f"{name}:Q" for name in QUANTILES)]
        ),
    )
    columns = [
        *(Column("template", "template"), Column("prompts", "n")),
        *(Column(f"{level:.0%}", name) for name, level in QUANTILES.items()),
    ]
    caption = "By template: tick is the median, thick line the middle half, thin line 5 to 95 % of prompts."
    rows = Rows(tables, columns, (GROUP, COMPONENT))
    return Chart("templates", caption, picture, rows, row_height=RowHeight("template", 18), is_half=True)


def _histogram(values: Float[np.ndarray, " prompts"]) -> pl.DataFrame:
    counts, edges = np.histogram(values, bins=BINS)
    return pl.DataFrame({"low": edges[:-1], "high": edges[1:], "prompts": counts})


def _quantiles(values: Float[np.ndarray, " prompts"], templates: list[str]) -> pl.DataFrame:
    quantiles = {name: pl.col("value").quantile(level) for name, level in QUANTILES.items()}
    table = pl.DataFrame({"template": templates, "value": values}).group_by("template").agg(n=pl.len(), **quantiles)
    return table.sort(pl.col("p50").abs(), "template", descending=True).head(MAX_TEMPLATES)


def _extremes(data: ReportData, group: Key) -> Table | None:
    """Prompts by the norm of their values over all heads and MLPs."""
    if data.extremes.is_empty():
        return None
    is_of_group = (pl.col("task") == group.task) & (pl.col("wrong_answer") == group.wrong_answer)
    rows = data.extremes.filter(is_of_group, pl.col("statistic") == data.score_name(group))
    lines = [_line(row) for row in rows.sort("end", descending=True, maintain_order=True).iter_rows(named=True)]
    return Table(("", "size", "prompt", "answer", "template", "model is right"), lines) if lines else None


def _line(row: dict[str, Any]) -> list[str]:
    right = "-" if row["correct"] is None else "yes" if row["correct"] else "no"
    said = [row["end"], number(row["response"]), row["prompt"], answers(row["answer"]), row["template"]]
    return [*said, right]


def answers(text: str) -> str:
    """An answer as the table of prompts has it, `a|b|c` for a set; of a large set the first few."""
    few = text.split("|")
    return text if len(few) <= ANSWERS else f"{', '.join(few[:ANSWERS])} and {len(few) - ANSWERS} more"
