"""Section: scores against measured effects, ROC, faithfulness, and every method beside its cost."""

from __future__ import annotations

import altair as alt
import polars as pl
from sklearn.metrics import roc_curve

from gbcd.evaluation.recovery import MEMBER_SHARE
from gbcd.reduction.shard_values import Key
from gbcd.report.charts import COLOURS, GROUP, Chart, Control, Section, by_kind, data, key, kind, layered
from gbcd.report.findings import Findings, Measured
from gbcd.report.methods import TRUTH, methods, of_group

#: Effects that a score is drawn against, and what they are called.
AGAINST = {
    "resample": "effect of resampling",
    "mean": "effect of the mean",
    "zero": "effect of zero",
    "direct_effect": "direct effect on the metric",
}

#: Estimates of effects that are scores themselves, drawn beside the gradient scores.
ESTIMATES = ("direct_effect", "attribution_patching", "attribution_patching_ig", "hisp")

#: Components that are named beside their dot.
NAMED = 10

_HELP = (
    "Each head and MLP was replaced by its activation on a counterfactual prompt, and the drop of the metric measured. "
    f"A component is in the measured circuit if the drop is at least {MEMBER_SHARE:.0%} of the gap between them. "
    "Costs are forward passes per prompt, a backward pass counted as one."
)


def section(findings: Findings) -> Section | None:
    """The section; None where nothing was evaluated."""
    if findings.measured is None or TRUTH not in findings.measured.effects["method"]:
        return None
    measured = findings.measured
    groups = {key(index): group for index, group in enumerate(findings.groups) if _is_measured(measured, group)}
    against = {name: label for name, label in AGAINST.items() if name in measured.effects["method"]}
    scores = {name: _scores(findings, measured, group) for name, group in groups.items()}
    charts = (
        _scatter(findings, groups, measured, against),
        _roc(findings, groups, scores, measured),
        _faithfulness(findings, groups, measured),
    )
    tables = {name: methods(measured, group) for name, group in groups.items()}
    return Section(
        "effects",
        "Scores against measured effects",
        _HELP,
        (Control("against", "Against", against),),
        charts,
        tables_by_group=tables,
    )


def _is_measured(measured: Measured, group: Key) -> bool:
    return measured.effects.filter(pl.col("task") == group.task, pl.col("method") == TRUTH).height > 0


def _effects(measured: Measured, task: str, method: str) -> pl.DataFrame:
    return measured.effects.filter(pl.col("task") == task, pl.col("method") == method)


def _scores(findings: Findings, measured: Measured, group: Key) -> dict[str, pl.DataFrame]:
    """Scores by method: `component, score`; of components of the level that was evaluated."""
    found: dict[str, pl.DataFrame] = {}
    for statistic in findings.statistics:
        rows = _summary_rows(findings, group).select("component", score=f"{statistic}_mean").drop_nulls()
        found[statistic] = rows.filter(pl.col("score").is_finite())
    for method in ESTIMATES:
        found[method] = _effects(measured, group.task, method).select("component", score=pl.col("value").abs())
    return {method: rows for method, rows in found.items() if rows.height}


def _summary_rows(findings: Findings, group: Key) -> pl.DataFrame:
    return pl.concat([findings.nodes(group), findings.parts(group)])


def _scatter(findings: Findings, groups: dict[str, Key], measured: Measured, against: dict[str, str]) -> Chart:
    tables: dict[str, pl.DataFrame] = {}
    for name, group in groups.items():
        scores = _summary_rows(findings, group).select("component", "score", "rank")
        for method in against:
            rows = _effects(measured, group.task, method).join(scores, on="component")
            tables[key(name, method)] = rows.select(
                "component",
                "score",
                "rank",
                effect=100 * pl.col("value") / pl.col("gap"),
                low=100 * pl.col("ci_low") / pl.col("gap"),
                high=100 * pl.col("ci_high") / pl.col("gap"),
                kind=kind(),
            ).with_columns(named=pl.col("effect").abs().rank("ordinal", descending=True) <= NAMED)
    base = alt.Chart(data()).encode(
        x=alt.X("effect:Q", title="effect, % of the gap"), y=alt.Y("score:Q", title="score")
    )
    points = base.mark_point(filled=True, size=60, opacity=0.9).encode(
        tooltip=["component:N", "rank:Q", "score:Q", "effect:Q", "low:Q", "high:Q"]
    )
    names = base.transform_filter("datum.named").mark_text(align="left", dx=7, dy=-4).encode(text="component:N")
    return Chart(
        "effects",
        "Does a large score mean that a component matters? Effects in per cent of the gap between prompt and "
        "counterfactual; the largest are named.",
        layered(320, by_kind(points), names),
        tables,
        (GROUP, "against"),
        {
            "component": "component",
            "score": "score",
            "rank": "rank",
            "effect": "effect, %",
            "low": "from",
            "high": "to",
        },
    )


def _roc(
    findings: Findings, groups: dict[str, Key], scores: dict[str, dict[str, pl.DataFrame]], measured: Measured
) -> Chart:
    tables = {name: _roc_rows(measured, group.task, scores[name]) for name, group in groups.items()}
    picture = (
        alt.Chart(data())
        .mark_line(strokeWidth=2.5, interpolate="linear", point=alt.OverlayMarkDef(size=25))
        .encode(
            x=alt.X("false_positives:Q", title="share of the rest that is taken in", scale=alt.Scale(domain=[0, 1])),
            y=alt.Y("true_positives:Q", title="share of the circuit that is found", scale=alt.Scale(domain=[0, 1])),
            order="step:Q",
            tooltip=["method:N", "false_positives:Q", "true_positives:Q"],
        )
        .properties(height=300)
    )
    return Chart(
        "roc",
        "Taking components in order of score: the closer a line runs to the upper left corner, the better the score "
        "finds the measured circuit.",
        _by_method(picture, findings.statistics),
        tables,
        (GROUP,),
        {"method": "method", "false_positives": "of the rest", "true_positives": "of the circuit"},
    )


def _roc_rows(measured: Measured, task: str, scores: dict[str, pl.DataFrame]) -> pl.DataFrame:
    truth = _effects(measured, task, TRUTH).select(
        "component", member=pl.col("value").abs() >= MEMBER_SHARE * pl.col("gap").abs()
    )
    rows: list[pl.DataFrame] = []
    for method, scored in scores.items():
        joined = truth.join(scored, on="component")
        if joined["member"].n_unique() == 2:
            false, true, _ = roc_curve(joined["member"].to_numpy(), joined["score"].to_numpy())
            curve = pl.DataFrame({"false_positives": false, "true_positives": true}).with_row_index("step")
            rows.append(curve.with_columns(method=pl.lit(method)))
    return pl.concat(rows) if rows else pl.DataFrame({"method": [], "step": []})


def _faithfulness(findings: Findings, groups: dict[str, Key], measured: Measured) -> Chart:
    shown = (*findings.statistics, *ESTIMATES)
    tables = {
        name: of_group(measured.faithfulness, group)
        .filter(pl.col("method").is_in(shown))
        .select("method", "n_components", "faithfulness", size=100 * pl.col("size"), low="ci_low", high="ci_high")
        for name, group in groups.items()
    }
    picture = (
        alt.Chart(data())
        .mark_line(strokeWidth=2.5, point=alt.OverlayMarkDef(size=25))
        .encode(
            x=alt.X("size:Q", title="size of the circuit, % of all components", scale=alt.Scale(type="symlog")),
            y=alt.Y("faithfulness:Q", title="faithfulness"),
            tooltip=["method:N", "size:Q", "n_components:Q", "faithfulness:Q", "low:Q", "high:Q"],
        )
        .properties(height=300)
    )
    return Chart(
        "faithfulness",
        "How much of the model's metric circuits of growing size recover when everything outside them is resampled; 1 "
        "is the whole model.",
        _by_method(picture, findings.statistics),
        tables,
        (GROUP,),
        {
            "method": "method",
            "size": "size, %",
            "n_components": "components",
            "faithfulness": "faithfulness",
            "low": "95 % from",
            "high": "95 % to",
        },
    )


def _by_method(picture: alt.Chart, statistics: list[str]) -> alt.Chart:
    """Tell methods apart by colour and by dashes: gradient scores are solid, estimates of effects dashed."""
    drawn = [*statistics, *ESTIMATES]
    colours = [COLOURS[index % len(COLOURS)] for index in range(len(drawn))]
    dashes = [[1, 0]] * len(statistics) + [[7, 3], [4, 3], [2, 2], [7, 3, 2, 3]]
    legend = alt.Legend(orient="bottom", columns=2, labelLimit=200)
    return picture.encode(
        color=alt.Color("method:N", title=None, scale=alt.Scale(domain=drawn, range=colours), legend=legend),
        strokeDash=alt.StrokeDash("method:N", title=None, scale=alt.Scale(domain=drawn, range=dashes), legend=legend),
    )
