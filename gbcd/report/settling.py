"""Section: ranks of the best components as prompts grow."""

from __future__ import annotations

import altair as alt
import polars as pl

from gbcd.analysis.shard_values import Key
from gbcd.report.charts import GROUP, Chart, Section, data, key, layered
from gbcd.report.findings import Findings

#: Components with a line each, as many as there are colours.
LINES = 6

#: Places of numbers on the axis of ranks, of which those in its range are shown.
RANKS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 25, 30, 40, 50, 75, 100, 150, 200, 300, 500, 1000]


def section(findings: Findings) -> Section:
    """The section."""
    tables = {key(index): _ranks(findings, group) for index, group in enumerate(findings.groups)}
    base = alt.Chart(data()).encode(
        x=alt.X(
            "prompts:O",
            title="prompts averaged over",
            scale=alt.Scale(padding=1),
            axis=alt.Axis(labelExpr="format(datum.value, ',d')", labelAngle=0, labelOverlap="greedy"),
        ),
        y=alt.Y("rank:Q", title="rank", axis=alt.Axis(values=RANKS, format="d", grid=False)),
        detail="component:N",
    )
    colour = alt.Color("component:N", legend=None)
    # The scale is said once: Vega-Lite warns of a domain that several layers give, even if they agree.
    scale = alt.Scale(
        domain=alt.DomainUnionWith(unionWith=[1, LINES]), reverse=True, zero=False, nice=False, padding=10
    )
    lines = base.mark_line(strokeWidth=2).encode(color=colour, y=alt.Y("rank:Q", scale=scale))
    points = base.mark_point(filled=True, size=50, opacity=1).encode(
        color=colour,
        tooltip=["component:N", "prompts:Q", "rank:Q"],
    )
    names = base.transform_filter("datum.last").mark_text(align="left", dx=8).encode(text="component:N")
    chart = Chart(
        "settling",
        f"Ranks of the components that end highest, {LINES} at most, after the first 16, 32, 64 ... prompts, in the "
        "order in which they were drawn, up to all of them.",
        layered(lines, points, names, height=280),
        tables,
        (GROUP,),
        {"prompts": "prompts", "component": "component", "rank": "rank"},
    )
    text = (
        "Is the study large enough? Then ranks no longer change at the right, except that neighbours whose intervals "
        "overlap may change places for ever."
    )
    return Section("settling", "How soon the ranking settles", text, charts=(chart,))


def _ranks(findings: Findings, group: Key) -> pl.DataFrame:
    found = findings.prompts[group]
    best = findings.strongest(group, LINES)
    places = {name: found.names.index(name) for name in best}
    rows = [
        {"prompts": n, "component": name, "rank": 1 + int((means > means[place]).sum()), "last": n == found.n}
        for n, means in found.means.items()
        for name, place in places.items()
    ]
    schema = {"prompts": pl.Int64, "component": pl.String, "rank": pl.Int64, "last": pl.Boolean}
    return pl.DataFrame(rows, schema=schema)
