"""Section: scores against measured effects, how much of the gap circuits keep, and every method beside its cost."""

from __future__ import annotations

from collections.abc import Mapping

import altair as alt
import polars as pl

from gbcd.evaluation.recovery import MEMBER_SHARE, sample_of_effects
from gbcd.report.charts import BASE, FIND, GROUP, Chart, Control, Grid, Rows, Section, bound, key, layered
from gbcd.report.data import Group, ReportData, interval, kind, label
from gbcd.report.dots import beside, dots, marked

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

#: The same with their differences to the score that ranks.
ALL_FIGURES = FIGURES | {
    "spearman_difference": "Spearman, less that of ◀",
    "edge_cmd_difference": "CMD of edges, less that of ◀",
}

#: Methods of a picture of curves: the score that ranks, then the best. Methods that are listed before all are asked
#: for, and those of each cost that the picture of costs names.
CURVES, LISTED, NAMED = 6, 12, 3

#: Pixels: height of a picture, and room at the sides of that of costs.
HEIGHT, MARGIN = 300, 90


def section(data: ReportData) -> Section | None:
    """The section; None where nothing that the page shows was evaluated."""
    groups = [group for group in data.groups if group.is_evaluated]
    measured = {name for group in groups for name in group.measured.effects["method"].unique()}
    against = {name: said for name, said in AGAINST.items() if name in measured}
    if not against:
        return None
    text = (
        f"Do the scores find what matters? Each component was replaced by {_REPLACED[groups[0].truth or 'zero']}, and "
        f"the drop of the task's metric measured: its effect. It is in the measured circuit if its effect, of either "
        f"sign, is at least {MEMBER_SHARE:.0%} of the gap."
    )
    figures = _measured_figures(groups, FIGURES)
    return Section(
        "effects",
        "Scores against measured effects",
        text,
        controls=(Control("against", "Against", against), Control("figure", "Quality", figures)),
        charts=(_scatter(groups, list(against)), _cost(groups, list(figures)), _curves(groups), *_edge_curves(groups)),
        grids=(_methods(groups),),
    )


def _measured_figures(groups: list[Group], called: Mapping[str, str]) -> dict[str, str]:
    """Figures that some group has, and what they are called."""
    names = {name for group in groups for name in group.figures["figure"].unique()}
    return {name: words for name, words in called.items() if name in names}


def _scatter(groups: list[Group], against: list[str]) -> Chart:
    bound = 100 * MEMBER_SHARE
    bounds = (
        BASE.transform_aggregate(n="count()")
        .transform_calculate(bound=f"[{-bound}, {bound}]")
        .transform_flatten(["bound"])
        .mark_rule(strokeDash=[4, 4])
        .encode(x="bound:Q")
    )
    tables = {key(group.id, name): _effects(group, name) for group in groups for name in against}
    columns = {"component": "component", "rank": "rank", "score": "score", "effect, %": "effect"}
    titles = ("effect, % of the gap", "score, mean over prompts")
    return Chart(
        "effects",
        "Does a large score mean that a component matters? Dashed lines bound the measured circuit. A high score "
        "beside 0 % misleads; effects below zero are of components that work against the behaviour.",
        layered(bounds, *dots("effect", "score", titles), height=340),
        Rows(tables, columns, (GROUP, "against")),
        (FIND,),
    )


def _effects(group: Group, method: str) -> pl.DataFrame:
    scores = pl.concat([group.nodes, group.parts]).select("component", "score", "rank", kind=kind())
    return marked(scores.join(group.effects(method), on="component"), "effect", "score", 100 * MEMBER_SHARE)


def _cost(groups: list[Group], figures: list[str]) -> Chart:
    """Every method by its passes over a prompt and by a figure of quality."""
    scale = alt.Scale(type="symlog", padding=MARGIN)  # room for names at both ends
    across = alt.X("cost:Q", title="passes over each prompt", scale=scale, axis=alt.Axis(values=[0, 1, 2, 3, 5, 11]))
    base = BASE.encode(x=across, y=alt.Y("value:Q", title="quality", scale=alt.Scale(zero=False)))
    numbers = [alt.Tooltip(f"{name}:Q", format=".3~g") for name in ("cost", "value", "value_low", "value_high")]
    tall = alt.when("datum.is_score").then(alt.value(140)).otherwise(alt.value(50))
    points = base.mark_point(filled=True, opacity=0.9).encode(size=tall, tooltip=["method:N", *numbers])
    bounds = {"value": bound("value_low", "value"), "stop": bound("value_high", "value")}
    intervals = base.mark_rule(opacity=0.35).encode(y2="stop:Q").transform_calculate(**bounds)
    return Chart(
        "cost",
        "What does quality cost? A forward pass counts as one pass, a backward pass as another; the large dot is the "
        "score that ranks. Higher and further to the left is better; of each cost the best are named, and the large "
        "dot.",
        layered(intervals, points, beside(base), height=HEIGHT),
        Rows(
            {key(group.id, figure): _priced(group, figure) for group in groups for figure in figures},
            {"method": "method", "passes": "cost", "quality": "value"},
            (GROUP, "figure"),
        ),
    )


def _priced(group: Group, figure: str) -> pl.DataFrame:
    rows = group.figures.filter(pl.col("figure") == figure).select(
        "cost", *interval("value", "value"), component=_called(), is_score=pl.col("method") == group.score_name
    )
    is_best = pl.col("value").rank("ordinal", descending=True).over("cost") <= NAMED
    placed = marked(rows, "cost", "value", always=label(group.score_name))
    named = placed.with_columns(name=pl.when(is_best | pl.col("is_score")).then("name").otherwise(pl.lit("")))
    return named.rename({"component": "method"})


def _called() -> pl.Expr:
    return pl.col("method").map_elements(label, pl.String)


def _curves(groups: list[Group]) -> Chart:
    """Faithfulness by size of circuit, of the score that ranks and the methods that correlate best."""
    whole = BASE.transform_aggregate(n="count()").mark_rule(strokeDash=[4, 4]).encode(y=alt.datum(1))
    tables = {group.id: _kept(group.measured.faithfulness, group, "spearman", descending=True) for group in groups}
    return Chart(
        "faithfulness",
        "How much of the gap circuits of growing size keep when all else is replaced. 1, the dashed line, is the whole "
        "model; the thick line is the score that ranks.",
        layered(whole, _lines("components"), height=HEIGHT),
        Rows(tables, _listed("components")),
    )


def _edge_curves(groups: list[Group]) -> list[Chart]:
    """The same of circuits of edges, where edges have scores."""
    rows = {group.id: group.measured.edge_faithfulness.filter(pl.col("ranking") == "size") for group in groups}
    tables = {
        group.id: _kept(rows[group.id].rename({"n_edges": "n_components"}), group, "edge_cmd", descending=False)
        for group in groups
        if rows[group.id].height
    }
    chart = Chart(
        "edge-faithfulness",
        "The same of circuits of edges, as MIB cuts them: the edges with the largest sizes of scores, no dead ends; "
        "every other edge carries what it carries in the counterfactual.",
        layered(_lines("edges"), height=HEIGHT),
        Rows(tables, _listed("edges")),
    )
    return [chart] if tables else []


def _listed(counted: str) -> dict[str, str]:
    return {"method": "method", "size, %": "size", counted: "n_components", "faithfulness": "faithfulness"}


def _kept(rows: pl.DataFrame, group: Group, figure: str, descending: bool) -> pl.DataFrame:
    """Curves of the score that ranks and of the methods that are best by a figure, in this order."""
    best = group.figures.filter(pl.col("figure") == figure).sort("value", descending=descending)["method"].to_list()
    shown = list(dict.fromkeys([group.score_name, *best]))[:CURVES]
    rows = rows.filter(pl.col("method").is_in(shown) & pl.col("faithfulness").is_finite())
    return rows.sort(pl.col("method").cast(pl.Enum(shown)), "size").select(
        "n_components",
        *interval("faithfulness", "faithfulness"),
        method=_called(),
        is_score=pl.col("method") == group.score_name,
        size=100 * pl.col("size"),
    )


def _lines(counted: str) -> alt.Chart:
    """Lines told apart by colour and by dashes, in the order of their rows; `counted` is what circuits are made of."""
    columns = alt.ExprRef("width > 640 ? 3 : width > 360 ? 2 : 1")
    legend = alt.Legend(orient="bottom", columns=columns, labelLimit=220, symbolSize=300, symbolStrokeWidth=2)
    dashes = alt.Scale(range=[[1, 0], [8, 3], [5, 3], [2, 2], [8, 3, 2, 3], [5, 2, 2, 2]])
    sizes = alt.Axis(values=[0, 1, 2, 5, 10, 20, 50, 100])
    shown = {"size": "size, %", "n_components": counted, "faithfulness": "faithfulness"}
    numbers = [alt.Tooltip(f"{name}:Q", title=title, format=".3~g") for name, title in shown.items()]
    return BASE.mark_line(interpolate="linear").encode(
        x=alt.X("size:Q", title=f"size, % of all {counted}", scale=alt.Scale(type="symlog"), axis=sizes),
        y=alt.Y("faithfulness:Q", title="faithfulness"),
        color=alt.Color("method:N", title=None, sort=None, legend=legend),
        strokeDash=alt.StrokeDash("method:N", title=None, sort=None, scale=dashes, legend=legend),
        strokeWidth=alt.when("datum.is_score").then(alt.value(4)).otherwise(alt.value(1.75)),
        tooltip=["method:N", *numbers],
    )


def _methods(groups: list[Group]) -> Grid:
    """Methods by rank correlation with the truth, best first."""
    figures = {said: name for name, said in _measured_figures(groups, ALL_FIGURES).items()}
    caption = (
        "All methods; ◀ the score that ranks. In brackets 95 % intervals; a method is better or worse only where that "
        "of its difference leaves zero. Passes: forward passes over each prompt, a backward pass counted as one."
    )
    tables = {group.id: _of_methods(group) for group in groups}
    samples = {group.id: (group.nodes["n"].max(), group.figures["n_pairs"].max()) for group in groups}
    caveats = {name: said for name, sample in samples.items() if (said := sample_of_effects(*sample))}
    return Grid("methods", caption, Rows(tables, {"method": "method"} | figures | {"passes": "cost"}), LISTED, caveats)


def _of_methods(group: Group) -> pl.DataFrame:
    mark = pl.when(pl.col("method") == group.score_name).then(pl.lit(" ◀")).otherwise(pl.lit(""))
    values = [
        expression.filter(pl.col("figure") == figure).first().alias(expression.meta.output_name())
        for figure in ALL_FIGURES
        for expression in interval(figure, "value")
    ]
    found = group.figures.group_by("method", maintain_order=True).agg(*values, cost=pl.col("cost").first())
    return found.sort("spearman", descending=True, nulls_last=True).with_columns(method=_called() + mark)
