"""Section: scores against measured effects, and how much of the gap circuits keep."""

from __future__ import annotations

import altair as alt
import polars as pl

from gbcd.evaluation.recovery import MEMBER_SHARE
from gbcd.report import methods
from gbcd.report.charts import FIND, GROUP, Chart, Column, Control, Rows, Section, data_set, key, layered
from gbcd.report.data import Group, ReportData, kind, label
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

#: Methods of a picture of curves: the score that ranks, then the best by rank correlation.
CURVES = 6

#: Pixels of the curves.
HEIGHT = 300


def section(data: ReportData) -> Section | None:
    """The section; None where nothing that the page shows was evaluated."""
    groups = [group for group in data.groups if group.measured is not None]
    measured = {name for group in groups if group.measured for name in group.measured.effects["method"].unique()}
    against = {name: said for name, said in AGAINST.items() if name in measured}
    if not groups or not against:
        return None
    text = (
        f"Do the scores find what matters? Each component was replaced by {_REPLACED[groups[0].truth or 'zero']}, and "
        f"the drop of the task's metric measured. It is in the measured circuit if the drop is at least "
        f"{MEMBER_SHARE:.0%} of the gap."
    )
    return Section(
        "effects",
        "Scores against measured effects",
        text,
        controls=(Control("against", "Against", against), Control("figure", "Quality", methods.figures(groups))),
        charts=(_scatter(groups, list(against)), methods.cost_chart(groups), _curves(groups), *_edge_curves(groups)),
        grids=(methods.table(groups),),
    )


def _scatter(groups: list[Group], against: list[str]) -> Chart:
    bound = 100 * MEMBER_SHARE
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
        Rows({key(group.id, name): _effects(group, name) for group in groups for name in against}, columns, _CONTROLS),
        (FIND,),
    )


_CONTROLS = (GROUP, "against")


def _effects(group: Group, method: str) -> pl.DataFrame:
    scores = pl.concat([group.nodes, group.parts]).select("component", "score", "rank", kind=kind())
    return marked(scores.join(group.effects(method), on="component"), "effect", "score", 100 * MEMBER_SHARE)


def _curves(groups: list[Group]) -> Chart:
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
        Rows({group.id: _kept(group) for group in groups}, columns),
    )


def _edge_curves(groups: list[Group]) -> tuple[Chart, ...]:
    """The same of circuits of edges, where edges have scores."""
    scored = [group for group in groups if group.measured is not None and group.measured.edge_faithfulness.height]
    if not scored:
        return ()
    columns = [
        *(Column("method", "method"), Column("size, %", "size"), Column("edges", "n_components")),
        Column("faithfulness", "faithfulness", "low", "high"),
    ]
    chart = Chart(
        "edge-faithfulness",
        "The same of circuits of edges, as MIB cuts them: the edges with the largest sizes of scores, no dead ends; "
        "every other edge carries what it carries in the counterfactual.",
        layered(_lines(), height=HEIGHT),
        Rows({group.id: _kept_edges(group) for group in scored}, columns),
    )
    return (chart,)


def _kept_edges(group: Group) -> pl.DataFrame:
    assert group.measured is not None
    rows = group.measured.edge_faithfulness.filter(pl.col("ranking") == "size").rename({"n_edges": "n_components"})
    best = group.figures.filter(pl.col("figure") == "edge_cmd").sort("value")["method"].to_list()
    return _shown(rows, [group.score_name, *best], group)


def _kept(group: Group) -> pl.DataFrame:
    assert group.measured is not None
    best = group.figures.filter(pl.col("figure") == "spearman").sort("value", descending=True)["method"].to_list()
    return _shown(group.measured.faithfulness, [group.score_name, *best], group)


def _shown(rows: pl.DataFrame, best_first: list[str], group: Group) -> pl.DataFrame:
    order = {name: place for place, name in enumerate(list(dict.fromkeys(best_first))[:CURVES])}
    rows = rows.filter(pl.col("method").is_in(list(order)) & pl.col("faithfulness").is_finite())
    return rows.sort(pl.col("method").replace_strict(order, return_dtype=pl.Int64), "size").select(
        *("n_components", "faithfulness"),
        method=pl.col("method").map_elements(label, pl.String),
        is_score=pl.col("method") == group.score_name,
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
