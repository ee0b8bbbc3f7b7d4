"""Every method beside its cost: a picture of quality against passes, and the table of all figures."""

from __future__ import annotations

from collections.abc import Mapping

import altair as alt
import polars as pl

from gbcd.report.charts import GROUP, Chart, Column, Grid, Rows, data_set, key, layered
from gbcd.report.data import Group, label
from gbcd.report.dots import marked

#: Figures of the table of methods; those with intervals are over templates or prompts, as the evaluation took them.
FIGURES = {
    "spearman": "Spearman",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "cpr": "CPR",
    "cmd": "CMD",
    "edge_cpr": "CPR, edges",
    "edge_cmd": "CMD, edges",
    "edge_cmd_greedy": "CMD, edges, greedy",
}

#: Their differences to the score that ranks.
DIFFERENCES = {"spearman_difference": "Spearman, less that of ◀", "edge_cmd_difference": "CMD of edges, less that of ◀"}

#: Methods that are listed before all are asked for, and those of each cost that the picture names.
LISTED, NAMED = 12, 3

#: Pixels: height of the picture, and room at its sides.
HEIGHT, MARGIN = 300, 90


def cost_chart(groups: list[Group]) -> Chart:
    """Every method by its passes over a prompt and by a figure of quality."""
    columns = [Column("method", "method"), Column("passes", "cost"), Column("quality", "value", "low", "high")]
    scale = alt.Scale(type="symlog", padding=MARGIN)  # room for names at both ends
    across = alt.X("cost:Q", title="passes over each prompt", scale=scale, axis=alt.Axis(values=[0, 1, 2, 3, 5, 11]))
    base = alt.Chart(data_set()).encode(x=across)
    value = alt.Y("value:Q", title="quality", scale=alt.Scale(zero=False))
    numbers = [alt.Tooltip(f"{name}:Q", format=".3~g") for name in ("cost", "value", "low", "high")]
    tall = alt.when("datum.is_score").then(alt.value(140)).otherwise(alt.value(50))
    points = base.mark_point(filled=True, opacity=0.9).encode(y=value, size=tall, tooltip=["method:N", *numbers])
    intervals = base.mark_rule(opacity=0.35).encode(y=value, y2="high:Q").transform_calculate(value="datum.low")
    align = alt.ExprRef("datum.side === 'left' ? 'right' : 'left'")
    away = alt.ExprRef("datum.side === 'left' ? -7 : 7")
    names = base.mark_text(align=align, dx=away, dy=-4).encode(y=value, text="name:N")
    return Chart(
        "cost",
        "What does quality cost? A forward pass counts as one pass, a backward pass as another; the large dot is the "
        "score that ranks. Higher and further to the left is better; of each cost the best are named.",
        layered(intervals, points, names, height=HEIGHT),
        Rows(
            {key(group.id, figure): _priced(group, figure) for group in groups for figure in figures(groups)},
            columns,
            (GROUP, "figure"),
        ),
    )


def _priced(group: Group, figure: str) -> pl.DataFrame:
    rows = group.figures.filter(pl.col("figure") == figure, pl.col("value").is_finite()).select(
        "cost",
        "value",
        component=pl.col("method").map_elements(label, pl.String),
        low="ci_low",
        high="ci_high",
        is_score=pl.col("method") == group.score_name,
    )
    is_best = pl.col("value").rank("ordinal", descending=True).over("cost") <= NAMED
    named = marked(rows, "cost", "value").with_columns(name=pl.when(is_best).then("name").otherwise(pl.lit("")))
    return named.rename({"component": "method"})


def figures(groups: list[Group], said: Mapping[str, str] = FIGURES) -> dict[str, str]:
    """Figures that some group has, and what they are called."""
    names = {name for group in groups for name in group.figures["figure"].unique()}
    return {name: words for name, words in said.items() if name in names}


def table(groups: list[Group]) -> Grid:
    """Methods by rank correlation with the truth, best first."""
    columns = [
        Column("method", "method"),
        *(
            Column(said, name, f"{name}_low", f"{name}_high")
            for name, said in figures(groups, {**FIGURES, **DIFFERENCES}).items()
        ),
        Column("passes", "cost"),
    ]
    caption = (
        "All methods; ◀ the score that ranks. In brackets 95 % intervals; a method is better or worse only where that "
        "of its difference leaves zero. Passes: forward passes over each prompt, a backward pass counted as one."
    )
    return Grid("methods", caption, Rows({group.id: _figures(group) for group in groups}, columns), LISTED)


def _figures(group: Group) -> pl.DataFrame:
    mark = pl.when(pl.col("method") == group.score_name).then(pl.lit(" ◀")).otherwise(pl.lit(""))
    values = [
        pl.col(column).filter(pl.col("figure") == figure).first().alias(f"{figure}{end}")
        for figure in (*FIGURES, *DIFFERENCES)
        for column, end in (("value", ""), ("ci_low", "_low"), ("ci_high", "_high"))
    ]
    found = group.figures.group_by("method", maintain_order=True).agg(*values, cost=pl.col("cost").first())
    best_first = found.sort("spearman", descending=True, nulls_last=True)
    return best_first.with_columns(method=pl.col("method").map_elements(label, pl.String) + mark)
