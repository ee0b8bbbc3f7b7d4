"""Section: how the scores of the best components spread over prompts and templates, and the prompts at either end."""

from __future__ import annotations

from typing import Any

import altair as alt
import polars as pl

from gbcd.printing import number
from gbcd.report.charts import BASE, GROUP, Chart, Control, RowHeight, Rows, Section, Table, key, layered
from gbcd.report.data import Group, ReportData, label

#: Components with a choice of their own, templates that are drawn.
CHOSEN, MAX_TEMPLATES = 12, 30

#: Answers that are shown of a set.
ANSWERS = 3

#: Of the prompts of a template.
QUANTILES = {"p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}

#: The control of the section.
COMPONENT = "component"


def section(data: ReportData) -> Section | None:
    """The section; None where no sample of prompts was kept."""
    samples = {group.id: data.samples.get(group.key, pl.DataFrame()) for group in data.groups}
    largest = max((sample.height for sample in samples.values()), default=0)
    if not largest:
        return None
    names: dict[str, dict[str, str]] = {}
    templates: dict[str, pl.DataFrame] = {}
    for group in data.groups:
        best = group.nodes["component"].head(CHOSEN) if samples[group.id].height else []
        names[group.id] = {str(number): name for number, name in enumerate(best)}
        for place, name in names[group.id].items():
            templates[key(group.id, place)] = _quantiles(samples[group.id], name)
    score = " or ".join(dict.fromkeys(label(group.score_name) for group in data.groups))
    ends = {group.id: _extremes(data, group) for group in data.groups}
    return Section(
        "prompts",
        "Over prompts and templates",
        f"Does a component serve all prompts, or a few kinds of them? {score.capitalize()} of single prompts, of a "
        f"random sample of up to {largest:,}; at the end the prompts "
        "whose values over all components are largest and smallest.",
        controls=(Control(COMPONENT, "Component", names[data.groups[0].id], names),),
        charts=(_template_chart(templates),),
        tables_by_group={name: table for name, table in ends.items() if table is not None},
    )


def _template_chart(tables: dict[str, pl.DataFrame]) -> Chart:
    order = alt.EncodingSortField("p50", order="descending")
    base = BASE.encode(y=alt.Y("template:N", sort=order, title=None, axis=alt.Axis(labelLimit=220)))
    scale, title = alt.Scale(zero=True), "of a single prompt"
    picture = layered(
        base.mark_rule().encode(x=alt.X("p05:Q", scale=scale, title=title), x2="p95:Q"),
        base.mark_bar(size=7).encode(x=alt.X("p25:Q", title=title), x2="p75:Q"),
        base.mark_tick(thickness=3, size=15, opacity=1).encode(
            x=alt.X("p50:Q", title=title), tooltip=["template:N", "n:Q", *(f"{name}:Q" for name in QUANTILES)]
        ),
    )
    columns = {"template": "template", "prompts": "n"} | {f"{level:.0%}": name for name, level in QUANTILES.items()}
    caption = "By template: tick is the median, thick line the middle half, thin line 5 to 95 % of prompts."
    rows = Rows(tables, columns, (GROUP, COMPONENT))
    return Chart("templates", caption, picture, rows, row_height=RowHeight("template", 18))


def _quantiles(sample: pl.DataFrame, component: str) -> pl.DataFrame:
    value = pl.col(component).cast(pl.Float64)
    quantiles = {name: value.quantile(level, "linear") for name, level in QUANTILES.items()}
    table = sample.group_by("template").agg(n=pl.len(), **quantiles)
    return table.sort(pl.col("p50").abs(), "template", descending=True).head(MAX_TEMPLATES)


def _extremes(data: ReportData, group: Group) -> Table | None:
    """Prompts by the norm of their values over all heads and MLPs."""
    if data.extremes.is_empty():
        return None
    rows = data.extremes.filter(**group.key._asdict(), statistic=group.score_name)
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
