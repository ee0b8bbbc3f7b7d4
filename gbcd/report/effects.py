"""Section: scores against measured effects, ROC, faithfulness, and every method beside its cost."""

from __future__ import annotations

import altair as alt
import polars as pl

from gbcd.evaluation.recovery import MEMBER_SHARE
from gbcd.reduction.shard_values import Key
from gbcd.report.charts import GROUP, Chart, Control, Section, by_kind, data, key, kind, layered
from gbcd.report.curves import faithfulness, roc
from gbcd.report.findings import Findings, Measured
from gbcd.report.methods import methods, of_group, truth_of

#: Effects that a score is drawn against, and what they are called.
AGAINST = {
    "resample": "effect of resampling",
    "mean": "effect of the mean",
    "zero": "effect of zero",
    "direct_effect": "direct effect on the metric",
}

#: What a component was replaced by, for the effect that counts.
_REPLACED = {
    "resample": "its value on a counterfactual prompt",
    "mean": "its mean over prompts, since these prompts have no counterfactuals",
    "zero": "zero",
}

#: Components that are named beside their dot.
NAMED = 10

#: Width and height of a name, as shares of the picture's.
NAME = (0.07, 0.04)


def section(findings: Findings) -> Section | None:
    """The section; None where nothing was evaluated."""
    if findings.measured is None:
        return None
    measured = findings.measured
    groups = {
        key(index): group
        for index, group in enumerate(findings.groups)
        if group.task in measured.effects["task"].to_list()
    }
    if not groups:
        return None
    against = {name: label for name, label in AGAINST.items() if name in measured.effects["method"]}
    replaced = _REPLACED[truth_of(measured, next(iter(groups.values())).task)]
    text = (
        f"Do the scores find what matters? Each head and MLP was replaced by {replaced}, and the drop of the metric "
        f"measured. A component is in the measured circuit if the drop is at least {MEMBER_SHARE:.0%} of the gap. The "
        "table compares all methods, best rank correlation first; its words are explained at the end of the page."
    )
    return Section(
        "effects",
        "Scores against measured effects",
        text,
        (Control("against", "Against", against),),
        (
            _scatter(findings, groups, measured, against),
            roc(findings, groups, measured),
            faithfulness(findings, groups, measured),
        ),
        tables_by_group={name: methods(measured, group, findings.ranked_by[group]) for name, group in groups.items()},
    )


def _scatter(findings: Findings, groups: dict[str, Key], measured: Measured, against: dict[str, str]) -> Chart:
    tables = {
        key(name, method): _effects(findings, group, measured, method)
        for name, group in groups.items()
        for method in against
    }
    base = alt.Chart(data()).encode(
        x=alt.X("effect:Q", title="effect, % of the gap"), y=alt.Y("score:Q", title="score, mean over prompts")
    )
    points = base.mark_point(filled=True, size=60, opacity=0.9).encode(
        tooltip=[
            "component:N",
            *(alt.Tooltip(f"{name}:Q", format=".4~g") for name in ("rank", "score", "effect", "low", "high")),
        ]
    )
    names = base.transform_filter("datum.named").mark_text(align="left", dx=7, dy=-4).encode(text="component:N")
    bounds = (
        alt.Chart(data())
        .transform_aggregate(n="count()")
        .transform_calculate(bound=f"[{-100 * MEMBER_SHARE}, {100 * MEMBER_SHARE}]")
        .transform_flatten(["bound"])
        .mark_rule(strokeDash=[4, 4])
        .encode(x="bound:Q")
    )
    return Chart(
        "effects",
        "Does a large score mean that a component matters? Dashed lines bound the measured circuit, to their left and "
        "right; the largest effects and scores are named. Negative effects are of components that work against the "
        "behaviour.",
        layered(bounds, by_kind(points), names, height=340),
        tables,
        (GROUP, "against"),
        {
            "component": "component",
            "score": "score",
            "rank": "rank",
            "effect": "effect, %",
            "low": "95 % from",
            "high": "95 % to",
        },
    )


def _effects(findings: Findings, group: Key, measured: Measured, method: str) -> pl.DataFrame:
    scores = findings.nodes_and_parts(group).select("component", "score", "rank")
    rows = of_group(measured.effects, group).filter(pl.col("method") == method).join(scores, on="component")
    return rows.select(
        "component",
        "score",
        "rank",
        effect=100 * pl.col("value") / pl.col("gap"),
        low=100 * pl.col("ci_low") / pl.col("gap"),
        high=100 * pl.col("ci_high") / pl.col("gap"),
        kind=kind(),
    ).pipe(marked)


def marked(rows: pl.DataFrame) -> pl.DataFrame:
    """Mark the components with the largest effects or scores as `named`, but for names that would lie on something."""
    largest = pl.col("effect").abs().max(), pl.col("score").max()
    places = rows.select("component", x=pl.col("effect") / largest[0], y=pl.col("score") / largest[1])
    order = places.sort(pl.max_horizontal(pl.col("x").abs(), "y"), descending=True).rows()
    named: list[tuple[str, float, float]] = []
    for name, x, y in order:
        beside_name = any(abs(x - u) < NAME[0] and abs(y - v) < NAME[1] for _, u, v in named)
        below_dot = any(0 < u - x < NAME[0] and abs(y - v) < NAME[1] for _, u, v in order)
        if not beside_name and not below_dot and len(named) < NAMED:
            named.append((name, x, y))
    return rows.with_columns(named=pl.col("component").is_in([name for name, _, _ in named]))
