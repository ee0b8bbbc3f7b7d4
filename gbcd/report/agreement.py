"""Section: do definitions of the wrong answer agree about where the behaviour lies?"""

from __future__ import annotations

import altair as alt
import polars as pl

from gbcd.analysis.shard_values import Key
from gbcd.evaluation.agreement import spearman
from gbcd.report.charts import GROUP, Chart, RowHeight, Section, data, key, layered
from gbcd.report.findings import Findings
from gbcd.report.theme import SCHEME

#: Pixels of a cell and of the names beside it.
ROW, COLUMN, NAMES = 36, 90, 140

_HELP = (
    "Does it matter what the loss pulls towards? Spearman's rank correlation of the scores of all heads and MLPs "
    "under each pair of definitions, for the chosen task."
)


def section(findings: Findings) -> Section | None:
    """The section; None for a study with one wrong answer."""
    if len({group.wrong_answer for group in findings.groups}) < 2:
        return None
    by_task = {task: _matrix(findings, task) for task in {group.task for group in findings.groups}}
    gaps = alt.Scale(paddingInner=0.05)
    base = alt.Chart(data()).encode(
        x=alt.X("one:N", title=None, sort=None, scale=gaps, axis=alt.Axis(labelAngle=-40, labelLimit=110)),
        y=alt.Y("other:N", title=None, sort=None, scale=gaps, axis=alt.Axis(labelLimit=110)),
        tooltip=["one:N", "other:N", alt.Tooltip("spearman:Q", format=".3f")],
    )
    colour = alt.Color("spearman:Q", scale=alt.Scale(scheme=SCHEME, domain=[0, 1], clamp=True), legend=None)
    ink = alt.when("datum.spearman > 0.48").then(alt.value("black")).otherwise(alt.value("white"))
    cells = base.mark_rect().encode(color=colour)
    numbers = base.mark_text(fontSize=12).encode(text=alt.Text("spearman:Q", format=".2f"), color=ink)
    chart = Chart(
        "agreement",
        "1: the same order of components; 0: unrelated.",
        layered(cells, numbers),
        {key(index): by_task[group.task] for index, group in enumerate(findings.groups)},
        (GROUP,),
        {"one": "wrong answer", "other": "wrong answer", "spearman": "Spearman"},
        RowHeight("other", ROW),
        NAMES + COLUMN * max(table["one"].n_unique() for table in by_task.values()),
        is_of_task=True,
    )
    return Section("agreement", "Agreement between wrong answers", _HELP, charts=(chart,))


def _matrix(findings: Findings, task: str) -> pl.DataFrame:
    names = [group.wrong_answer for group in findings.groups if group.task == task]
    scores = {name: findings.nodes(Key(task, name)).select("component", "score") for name in names}
    rows: list[dict[str, object]] = []
    for one in names:
        for other in names:
            joined = scores[one].join(scores[other], on="component", suffix="_other")
            correlation = float(spearman(joined["score"].to_numpy(), joined["score_other"].to_numpy()))
            rows.append({"one": one, "other": other, "spearman": correlation})
    return pl.DataFrame(rows)
