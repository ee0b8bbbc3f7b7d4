"""Sections about the strongest components: their scores with intervals, and how they spread over prompts."""

from __future__ import annotations

import altair as alt
import numpy as np
import polars as pl

from gbcd.report.charts import GROUP, Chart, Control, RowHeight, Section, by_kind, data, key, kind, layered
from gbcd.report.findings import Findings
from gbcd.report.prompt_pass import PromptFindings

#: Components in the list, and with a choice of their own.
LISTED, CHOSEN = 20, 12

#: Bars of a histogram.
BINS = 40

#: Title of the axis of what is not a mean.
SINGLE = "score of a single prompt"

#: Of the prompts of a template.
QUANTILES = {"p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}

#: Templates that are drawn.
MAX_TEMPLATES = 40


def top_components(findings: Findings) -> Section:
    """The best components with the intervals of their scores."""
    tables = {
        key(index): findings.nodes(group)
        .head(LISTED)
        .select(
            "rank",
            "component",
            "score",
            kind=kind(),
            low=f"{findings.ranked_by[group]}_ci_low",
            high=f"{findings.ranked_by[group]}_ci_high",
            rank_low="rank_ci_low",
            rank_high="rank_ci_high",
        )
        for index, group in enumerate(findings.groups)
    }
    order = alt.EncodingSortField("rank", order="ascending")
    base = alt.Chart(data()).encode(y=alt.Y("component:N", sort=order, title=None))
    bars = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", title="score, mean over prompts", scale=alt.Scale(zero=True)),
        x2="high:Q",
        color=alt.Color("kind:N"),
    )
    points = base.mark_point(filled=True, size=70, opacity=1).encode(
        x="score:Q",
        tooltip=["rank:Q", "component:N", alt.Tooltip("score:Q", format=".4~g"), "low:Q", "high:Q"],
    )
    chart = Chart(
        "top",
        f"The {LISTED} highest scores; lines are 95 % intervals that treat templates as clusters. Where lines "
        "overlap, the order may turn with other templates.",
        layered(bars, by_kind(points)),
        tables,
        (GROUP,),
        {
            "rank": "rank",
            "component": "component",
            "score": "score",
            "low": "95 % from",
            "high": "95 % to",
            "rank_low": "rank from",
            "rank_high": "rank to",
        },
        RowHeight("component", 20),
    )
    text = "Heads and MLPs ranked together by the mean of their score over prompts."
    return Section("top", "Strongest components", text, charts=(chart,))


def over_prompts(findings: Findings) -> Section:
    """How the score of one component spreads over prompts and over templates."""
    histograms: dict[str, pl.DataFrame] = {}
    templates: dict[str, pl.DataFrame] = {}
    names: dict[str, dict[str, str]] = {}
    for index, group in enumerate(findings.groups):
        chosen = findings.nodes(group)["component"].head(CHOSEN).to_list()
        names[key(index)] = {str(number): f"{name} (rank {number + 1})" for number, name in enumerate(chosen)}
        for number, name in enumerate(chosen):
            values = _values(findings.prompts[group], name)
            histograms[key(index, number)] = _histogram(values["value"].to_numpy())
            templates[key(index, number)] = _quantiles(values)
    control = Control("component", "Component", names["0"], names)
    histogram = Chart(
        "distribution",
        "How many prompts give which value: a broad or double hump means that the component answers to something in "
        "the prompt.",
        alt.Chart(data())
        .mark_bar(binSpacing=1)
        .encode(
            x=alt.X("low:Q", bin="binned", title=SINGLE),
            x2="high:Q",
            y=alt.Y("prompts:Q", title="prompts"),
            y2=alt.datum(0),
            tooltip=["low:Q", "high:Q", "prompts:Q"],
        )
        .properties(height=180),
        histograms,
        (GROUP, control.name),
        {"low": "from", "high": "to", "prompts": "prompts"},
    )
    by_template = Chart(
        "templates",
        "The same by template, those with the highest median first: tick is the median, thick line the middle half, "
        "thin line 5 to 95 % of prompts.",
        _spread(),
        templates,
        (GROUP, control.name),
        {"template": "template", "n": "prompts"} | {name: f"{int(name[1:])} %" for name in QUANTILES},
        RowHeight("template", 18),
    )
    return Section("prompts", "Over prompts and templates", _sampled(findings), (control,), (histogram, by_template))


def _sampled(findings: Findings) -> str:
    counts = sorted({min(found.n, len(found.templates)) for found in findings.prompts.values()})
    return (
        "Does a component carry all prompts, or a few kinds of them? Scores of single prompts, of a random sample of "
        f"up to {counts[-1]:,} for each task and wrong answer."
    )


def _values(found: PromptFindings, name: str) -> pl.DataFrame:
    return pl.DataFrame({"template": found.templates, "value": found.sample[found.names.index(name)]})


def _histogram(values: np.ndarray) -> pl.DataFrame:
    counts, edges = np.histogram(values, bins=BINS)
    return pl.DataFrame({"low": edges[:-1], "high": edges[1:], "prompts": counts})


def _quantiles(values: pl.DataFrame) -> pl.DataFrame:
    quantiles = {name: pl.col("value").quantile(level) for name, level in QUANTILES.items()}
    return (
        values.group_by("template")
        .agg(n=pl.len(), **quantiles)
        .sort("p50", "template", descending=True)
        .head(MAX_TEMPLATES)
    )


def _spread() -> alt.LayerChart:
    order = alt.EncodingSortField("p50", order="descending")
    base = alt.Chart(data()).encode(y=alt.Y("template:N", sort=order, title=None, axis=alt.Axis(labelLimit=110)))
    scale = alt.Scale(zero=True)
    return layered(
        base.mark_rule().encode(x=alt.X("p05:Q", scale=scale, title=SINGLE), x2="p95:Q"),
        base.mark_bar(size=7).encode(x=alt.X("p25:Q", title=SINGLE), x2="p75:Q"),
        base.mark_tick(thickness=3, size=15, opacity=1).encode(
            x=alt.X("p50:Q", title=SINGLE), tooltip=["template:N", "n:Q", "p05:Q", "p25:Q", "p50:Q", "p75:Q", "p95:Q"]
        ),
    )
