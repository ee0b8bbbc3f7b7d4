"""Section: scores against measured effects, how much of the gap circuits keep, and every method beside its cost."""

from __future__ import annotations

import altair as alt
import polars as pl

from gbcd.analysis.shard_values import Key
from gbcd.evaluation.recovery import MEMBER_SHARE
from gbcd.report.charts import FIND, GROUP, Chart, Column, Control, Grid, Rows, Section, data_set, key, layered
from gbcd.report.data import Measured, ReportData, label
from gbcd.report.dots import dots, marked

#: Effects that a score is drawn against, and what they are called.
AGAINST = {
    "resample": "effect of resampling",
    "mean": "effect of the mean",
    "zero": "effect of zero",
    "direct_effect": "direct effect on the metric",
}

#: What a component was replaced by, for the effect that counts.
_REPLACED = {
    "resample": "its value on the reference (the counterfactual, or another prompt)",
    "mean": "its mean over prompts, since these prompts have no reference",
    "zero": "zero",
}

#: Figures of the table of methods; those with intervals are over templates or prompts, as the evaluation took them.
FIGURES = {"spearman": "Spearman", "auroc": "AUROC", "auprc": "AUPRC", "cpr": "CPR", "cmd": "CMD"}

#: Methods of a picture of curves: the score that ranks, then the best by rank correlation.
CURVES = 6

HEIGHT = 300


def section(data: ReportData) -> Section | None:
    """The section; None where nothing that the page shows was evaluated."""
    measured = data.measured
    if measured is None:
        return None
    truths = {key(index): measured.truth(group.task) for index, group in enumerate(data.groups)}
    groups = {name: data.groups[int(name)] for name, truth in truths.items() if truth is not None}
    if not groups:
        return None
    against = {name: said for name, said in AGAINST.items() if name in measured.effects["method"]}
    replaced = _REPLACED[next(truth for truth in truths.values() if truth is not None)]
    text = (
        f"Do the scores find what matters? Each component was replaced by {replaced}, and the drop of the task's "
        f"metric measured. It is in the measured circuit if the drop is at least {MEMBER_SHARE:.0%} of the gap."
    )
    return Section(
        "effects",
        "Scores against measured effects",
        text,
        controls=(Control("against", "Against", against),),
        charts=(_scatter(data, groups, measured, against), _curves(data, groups, measured)),
        grids=(_methods(data, groups, measured),),
    )


def _scatter(data: ReportData, groups: dict[str, Key], measured: Measured, against: dict[str, str]) -> Chart:
    bound = 100 * MEMBER_SHARE
    tables = {
        key(name, method): marked(
            pl.concat([data.nodes(group), data.parts(group)])
            .select("component", "score", "rank")
            .join(measured.shares(group.task, method), on="component"),
            "effect",
            "score",
            bound,
        )
        for name, group in groups.items()
        for method in against
    }
    bounds = (
        alt.Chart(data_set())
        .transform_aggregate(n="count()")
        .transform_calculate(bound=f"[{-bound}, {bound}]")
        .transform_flatten(["bound"])
        .mark_rule(strokeDash=[4, 4])
        .encode(x="bound:Q")
    )
    columns = [
        *(Column("component", "component"), Column("rank", "rank"), Column("score", "score")),
        Column("effect, %", "effect", "effect_low", "effect_high"),
    ]
    titles = ("effect, % of the gap", "score, mean over prompts")
    return Chart(
        "effects",
        "Does a large score mean that a component matters? Dashed lines bound the measured circuit. A high score "
        "beside 0 % misleads; effects below zero are of components that work against the behaviour.",
        layered(bounds, *dots("effect", "score", titles), height=340),
        Rows(tables, columns, (GROUP, "against")),
        (FIND,),
    )


def _curves(data: ReportData, groups: dict[str, Key], measured: Measured) -> Chart:
    """Faithfulness by size of circuit, of the score that ranks and the methods that correlate best."""
    columns = [
        *(Column("method", "method"), Column("size, %", "size"), Column("components", "n_components")),
        Column("faithfulness", "faithfulness", "low", "high"),
    ]
    whole = alt.Chart(data_set()).transform_aggregate(n="count()").mark_rule(strokeDash=[4, 4]).encode(y=alt.datum(1))
    return Chart(
        "faithfulness",
        "How much of the gap circuits of growing size keep when all else is replaced. 1, the dashed line, is the whole "
        "model; the thick line is the score that ranks.",
        layered(whole, _lines(), height=HEIGHT),
        Rows({name: _kept(data, measured, group) for name, group in groups.items()}, columns),
    )


def _shown(data: ReportData, measured: Measured, group: Key) -> list[str]:
    found = measured.figures_of(group).filter(pl.col("figure") == "spearman", pl.col("value").is_finite())
    best = found.sort("value", descending=True)["method"].to_list()
    return list(dict.fromkeys([data.score_name(group), *best]))[:CURVES]


def _kept(data: ReportData, measured: Measured, group: Key) -> pl.DataFrame:
    shown = _shown(data, measured, group)
    order = {name: place for place, name in enumerate(shown)}
    rows = measured.of_group(measured.faithfulness, group).filter(
        pl.col("method").is_in(shown), pl.col("faithfulness").is_finite()
    )
    return rows.sort(pl.col("method").replace_strict(order, return_dtype=pl.Int64), "size").select(
        *("n_components", "faithfulness"),
        method=pl.col("method").map_elements(label, pl.String),
        is_score=pl.col("method") == data.score_name(group),
        size=100 * pl.col("size"),
        low="ci_low",
        high="ci_high",
    )


def _lines() -> alt.Chart:
    """Lines told apart by colour and by dashes, in the order of their rows."""
    columns = alt.ExprRef("width > 640 ? 3 : width > 360 ? 2 : 1")
    legend = alt.Legend(orient="bottom", columns=columns, labelLimit=220, symbolSize=300, symbolStrokeWidth=2)
    dashes = alt.Scale(range=[[1, 0], [8, 3], [5, 3], [2, 2], [8, 3, 2, 3], [5, 2, 2, 2]])
    sizes = alt.Axis(values=[0, 1, 2, 5, 10, 20, 50, 100])
    numbers = [alt.Tooltip(f"{name}:Q", format=".3~g") for name in ("size", "n_components", "faithfulness")]
    return (
        alt.Chart(data_set())
        .mark_line(interpolate="linear")
        .encode(
            x=alt.X("size:Q", title="size, % of all components", scale=alt.Scale(type="symlog"), axis=sizes),
            y=alt.Y("faithfulness:Q", title="faithfulness"),
            color=alt.Color("method:N", title=None, sort=None, legend=legend),
            strokeDash=alt.StrokeDash("method:N", title=None, sort=None, scale=dashes, legend=legend),
            strokeWidth=alt.when("datum.is_score").then(alt.value(4)).otherwise(alt.value(1.75)),
            tooltip=["method:N", *numbers],
        )
    )


def _methods(data: ReportData, groups: dict[str, Key], measured: Measured) -> Grid:
    """Methods by rank correlation with the truth, best first."""
    tables = {name: _figures(data, measured, group) for name, group in groups.items()}
    columns = [
        Column("method", "method"),
        *(Column(title, name, f"{name}_low", f"{name}_high") for name, title in FIGURES.items()),
        Column("passes", "cost"),
    ]
    caption = (
        "All methods; ◀ the score that ranks. In brackets 95 % intervals; passes: forward passes over each prompt, a "
        "backward pass counted as one."
    )
    return Grid("methods", caption, Rows(tables, columns), 12)


def _figures(data: ReportData, measured: Measured, group: Key) -> pl.DataFrame:
    rows = measured.figures_of(group)
    mark = pl.when(pl.col("method") == data.score_name(group)).then(pl.lit(" ◀")).otherwise(pl.lit(""))
    values = [
        pl.col(column).filter(pl.col("figure") == figure).first().alias(f"{figure}{end}")
        for figure in FIGURES
        for column, end in (("value", ""), ("ci_low", "_low"), ("ci_high", "_high"))
    ]
    return (
        rows.group_by("method", maintain_order=True)
        .agg(*values, cost=pl.col("cost").first())
        .sort(pl.col("spearman").fill_nan(None), descending=True, nulls_last=True)
        .with_columns(method=pl.col("method").map_elements(label, pl.String) + mark)
    )
