"""Section: scores against measured effects, ROC, faithfulness, and every method beside its cost."""

from __future__ import annotations

import math
from typing import NamedTuple

import altair as alt
import polars as pl

from gbcd.analysis.shard_values import Key
from gbcd.evaluation.recovery import MEMBER_SHARE
from gbcd.report.charts import GROUP, Chart, Control, Section, by_kind, data, key, kind, layered
from gbcd.report.curves import faithfulness, roc
from gbcd.report.findings import Findings, Measured
from gbcd.report.methods import effects_of, methods, truth_of

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

#: Components that are named beside their dot, and how many of them for their scores.
NAMED, BY_SCORE = 14, 10

#: Width and height of a name, half those of a dot, and how far a name stands above its dot, as shares of the picture's.
NAME, DOT, LIFT = (0.07, 0.03), (0.007, 0.012), 0.012


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
    is_left = "datum.side === 'left'"
    align, away = alt.ExprRef(f"{is_left} ? 'right' : 'left'"), alt.ExprRef(f"{is_left} ? -7 : 7")
    names = (
        base.transform_filter("datum.side !== null").mark_text(align=align, dx=away, dy=-4).encode(text="component:N")
    )
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
        "right; the highest scores and the largest effects are named. Negative effects are of components that work "
        "against the behaviour.",
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
    rows = effects_of(measured, group.task, method).join(scores, on="component")
    return rows.select("component", "score", "rank", "effect", "low", "high", kind=kind()).pipe(marked)


def marked(rows: pl.DataFrame) -> pl.DataFrame:
    """Where the names of some components stand, as `side`: right or left of the dot, null for those without.

    Those with the highest scores come first, since a high score without effect is what misleads most, then those with
    the largest effects. A name that would lie on a dot or on another name is left out.
    """
    x, y = pl.col("effect") / pl.col("effect").abs().max(), pl.col("score") / pl.col("score").max()
    places = rows.select("component", x=x, y=y)
    by_score = places.sort("y", descending=True).head(BY_SCORE)
    by_effect = places.sort(pl.col("x").abs(), descending=True)
    dots = [_Box(x - DOT[0], x + DOT[0], y - DOT[1], y + DOT[1]) for _, x, y in places.iter_rows()]
    bound = -100 * MEMBER_SHARE / max(map(abs, rows["effect"]), default=1.0)
    outside = _Box(-math.inf, min([bound, *places["x"]]), -math.inf, math.inf)
    named: dict[str, tuple[str, _Box]] = {}
    for name, x, y in pl.concat([by_score, by_effect]).unique(maintain_order=True).iter_rows():
        taken = [outside, *dots, *(box for _, box in named.values())]
        for side, box in _beside(x, y).items():
            if name not in named and len(named) < NAMED and not any(box.meets(other) for other in taken):
                named[name] = side, box
    sides = {name: side for name, (side, _) in named.items()}
    return rows.with_columns(side=pl.col("component").replace_strict(sides, default=None, return_dtype=pl.String))


class _Box(NamedTuple):
    """A rectangle, in shares of the largest effect and score."""

    left: float
    right: float
    low: float
    high: float

    def meets(self, other: _Box) -> bool:
        """Whether they overlap."""
        across = self.left < other.right and other.left < self.right
        return across and self.low < other.high and other.low < self.high


def _beside(x: float, y: float) -> dict[str, _Box]:
    """Where the name of a dot may stand, the better place first."""
    low, high = y + LIFT - NAME[1] / 2, y + LIFT + NAME[1] / 2
    return {
        "right": _Box(x + DOT[0], x + DOT[0] + NAME[0], low, high),
        "left": _Box(x - DOT[0] - NAME[0], x - DOT[0], low, high),
    }
