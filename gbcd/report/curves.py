"""Curves that compare methods: how well each finds the measured circuit, and what circuits of growing size recover.

The score that ranks is the thick line; gradient scores are solid, what needs other passes is dashed.
"""

from __future__ import annotations

import altair as alt
import polars as pl
from sklearn.metrics import roc_curve

from gbcd.analysis.shard_values import Key
from gbcd.evaluation.recovery import MEMBER_SHARE
from gbcd.report.charts import GROUP, Chart, data, layered
from gbcd.report.findings import Findings, Measured
from gbcd.report.methods import of_group, truth_of
from gbcd.report.words import method

#: Scores that need more than the study, drawn beside its gradient scores.
ESTIMATES = ("contrast_norm", "direct_effect", "attribution_patching", "attribution_patching_ig", "hisp")

_DASHES = [[8, 3], [5, 3], [2, 2], [8, 3, 2, 3], [5, 2, 2, 2, 2, 2]]

HEIGHT = 300


def roc(findings: Findings, groups: dict[str, Key], measured: Measured) -> Chart:
    """True against false positives of every method with values for single components."""
    picture = alt.Chart(data()).encode(
        x=alt.X("false_positives:Q", title="share of the rest that is taken in", scale=alt.Scale(domain=[0, 1])),
        y=alt.Y("true_positives:Q", title="share of the circuit that is found", scale=alt.Scale(domain=[0, 1])),
        order="step:Q",
        tooltip=["method:N", "false_positives:Q", "true_positives:Q"],
    )
    chance = _once().encode(x=alt.datum(0), y=alt.datum(0), x2=alt.datum(1), y2=alt.datum(1))
    return Chart(
        "roc",
        "Taking components in order of score: the closer a line runs to the upper left corner, the better the score "
        "finds the measured circuit. The diagonal is chance. Intervals of the areas, in the table, are over prompts, "
        "not over templates or components.",
        layered(chance, _by_method(picture, findings, measured), height=HEIGHT),
        {name: _roc_rows(measured, group, _scores(findings, measured, group)) for name, group in groups.items()},
        (GROUP,),
        {"method": "method", "false_positives": "of the rest", "true_positives": "of the circuit"},
        is_half=True,
    )


def _scores(findings: Findings, measured: Measured, group: Key) -> dict[str, pl.DataFrame]:
    """Scores by method: `component, score`; of components of the level that was evaluated."""
    found: dict[str, pl.DataFrame] = {}
    for statistic in findings.statistics:
        rows = findings.nodes_and_parts(group).select("component", score=f"{statistic}_mean").drop_nulls()
        found[statistic] = rows.filter(pl.col("score").is_finite())
    effects = of_group(measured.effects, group)
    for name in ESTIMATES:
        found[name] = effects.filter(pl.col("method") == name).select("component", score=pl.col("value").abs())
    return {name: rows for name, rows in found.items() if rows.height}


def _roc_rows(measured: Measured, group: Key, scores: dict[str, pl.DataFrame]) -> pl.DataFrame:
    effects = of_group(measured.effects, group).filter(pl.col("method") == truth_of(measured, group.task))
    truth = effects.select("component", member=pl.col("value").abs() >= MEMBER_SHARE * pl.col("gap").abs())
    rows: list[pl.DataFrame] = []
    for name, scored in scores.items():
        joined = truth.join(scored, on="component")
        if joined["member"].n_unique() == 2:
            false, true, _ = roc_curve(joined["member"].to_numpy(), joined["score"].to_numpy())
            curve = pl.DataFrame({"false_positives": false, "true_positives": true}).with_row_index("step")
            rows.append(curve.with_columns(method=pl.lit(method(name))))
    columns = ("step", "false_positives", "true_positives", "method")
    return pl.concat(rows) if rows else pl.DataFrame({name: [] for name in columns})


def faithfulness(findings: Findings, groups: dict[str, Key], measured: Measured) -> Chart:
    """What circuits of growing size recover, by every method."""
    shown = (*findings.statistics, *ESTIMATES)
    tables = {
        name: of_group(measured.faithfulness, group)
        .filter(pl.col("method").is_in(shown))
        .select(
            "n_components",
            "faithfulness",
            method=pl.col("method").map_elements(method, pl.String),
            size=100 * pl.col("size"),
            low="ci_low",
            high="ci_high",
        )
        for name, group in groups.items()
    }
    sizes = alt.Axis(values=[0, 1, 2, 5, 10, 20, 50, 100], tickCount=8)
    picture = alt.Chart(data()).encode(
        x=alt.X("size:Q", title="size of the circuit, % of all components", scale=alt.Scale(type="symlog"), axis=sizes),
        y=alt.Y("faithfulness:Q", title="faithfulness"),
        tooltip=["method:N", "size:Q", "n_components:Q", "faithfulness:Q", "low:Q", "high:Q"],
    )
    whole = _once().encode(y=alt.datum(1))
    return Chart(
        "faithfulness",
        "How much of the gap circuits of growing size recover when everything outside them is replaced. 1, the dashed "
        "line, is the whole model.",
        layered(whole, _by_method(picture, findings, measured), height=HEIGHT),
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
        is_half=True,
    )


def _once() -> alt.Chart:
    """A dashed rule to compare with, drawn once however many rows there are."""
    return alt.Chart(data()).transform_aggregate(n="count()").mark_rule(strokeDash=[4, 4])


def _by_method(picture: alt.Chart, findings: Findings, measured: Measured) -> alt.Chart:
    """Lines told apart by colour and by dashes."""
    estimates = [name for name in ESTIMATES if name in measured.effects["method"]]
    drawn = [method(name) for name in (*findings.statistics, *estimates)]
    dashes = [*([1, 0] for _ in findings.statistics), *_DASHES[: len(estimates)]]
    columns = alt.ExprRef("width > 640 ? 3 : width > 360 ? 2 : 1")
    legend = alt.Legend(orient="bottom", columns=columns, labelLimit=220, symbolSize=300, symbolStrokeWidth=2)
    width = alt.when(f"datum.method === '{drawn[0]}'").then(alt.value(4)).otherwise(alt.value(1.75))
    return picture.mark_line(interpolate="linear").encode(
        color=alt.Color("method:N", title=None, scale=alt.Scale(domain=drawn), legend=legend),
        strokeDash=alt.StrokeDash("method:N", title=None, scale=alt.Scale(domain=drawn, range=dashes), legend=legend),
        strokeWidth=width,
    )
