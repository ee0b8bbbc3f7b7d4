"""What to distrust, as warnings at the top of the page and on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import polars as pl

from gbcd.analysis.ranking import FEW_TEMPLATES, MIN_SHARE
from gbcd.analysis.shard_values import Key
from gbcd.engine.tables import FAILED, NON_FINITE, OK, UNCALIBRATED
from gbcd.report.data import ReportData, label

Value = TypeVar("Value", bound=Hashable)

#: A task is warned of when the model gets more than this share of its prompts wrong.
TOLERATED_WRONG = 0.1

#: A part counts as without gradient when its mean norm is below this share of the largest part's.
SILENT_SHARE = 1e-6

#: A strong component is warned of when fewer prompts agree with the sign of its mean; how many count as strong.
DIVIDED, STRONG = 0.7, 10

#: Names that a warning lists.
NAMED = 8

#: What is said of rows of the table of prompts that are not in every mean.
STATUSES = {
    NON_FINITE: "have values that are not finite, and are in no mean",
    UNCALIBRATED: "have no centred norm, since the calibration sample does not reach their length or template",
    FAILED: "are of prompts on which the computation failed, and are in no mean",
}


def warnings(data: ReportData) -> list[str]:
    """One sentence or two each."""
    return [
        *data.problems,
        *_statuses(data),
        *_wrong(data),
        *_partners(data),
        *_scores(data),
        *_templates(data),
        *_divided(data),
        *_silent(data),
        *_left_out(data),
    ]


def _statuses(data: ReportData) -> list[str]:
    return [
        f"{count:,} rows {STATUSES.get(status, 'are not whole')} (status {status} in gbcd.prompts)."
        for status, count in data.statuses.items()
        if status != OK and count
    ]


def _wrong(data: ReportData) -> list[str]:
    """Tasks that the model fails, by right against wrong answer where there is one, else by its first choice."""
    said: list[str] = []
    for row in data.examples.sort("task").iter_rows(named=True):
        above = row["above_wrong"]
        solved, how = (row["correct"], "first choice") if above is None else (above, "right against wrong answer")
        if solved is not None and 1 - solved > TOLERATED_WRONG:
            said.append(
                f"The model gets {1 - solved:.0%} of the {row['n']:,} prompts of {data.called(row['task'])} wrong (by "
                f"{how}): its gradients there say little about a circuit that solves the task."
            )
    return said


def _partners(data: ReportData) -> list[str]:
    return [
        f"{share:.0%} of the prompts of {data.called(task)} have no counterfactual of their own length; another prompt "
        "of their template stands in. Attributions then say what differs among prompts, not what decides the answer."
        for task, share in data.examples.select("task", "partner").iter_rows()
        if share
    ]


def _scores(data: ReportData) -> list[str]:
    """Groups that a weaker score ranks, since too few prompts have a reference."""

    def weaker(group: Key) -> str | None:
        n, n_prompts = data.nodes(group).select("attribution_n", "n_prompts").row(0)
        return data.score_name(group) if n < MIN_SHARE * n_prompts else None

    return [
        f"{_where(data, groups)}: ranked by {label(name)}, since fewer than {MIN_SHARE:.0%} of the prompts have a "
        "counterfactual or a partner."
        for name, groups in _by(data, weaker).items()
        if name is not None
    ]


def _templates(data: ReportData) -> list[str]:
    """Tasks with so few templates that intervals, which take them for clusters, mean little."""
    counts = data.summary.group_by("task", maintain_order=True).agg(pl.col("n_templates").max())
    return [
        f"Intervals of {data.called(task)} rest on {n} templates and say little."
        if n > 1
        else f"All prompts of {data.called(task)} are of one template: intervals say nothing of others."
        for task, n in counts.iter_rows()
        if n and n < FEW_TEMPLATES
    ]


def _divided(data: ReportData) -> list[str]:
    """Strong components whose sign differs between prompts."""
    said: list[str] = []
    for group in data.groups:
        found = data.attribution(group)
        column = "" if found is None else f"{found.name}_sign_agreement"
        if column in data.summary.columns:
            rows = data.nodes(group).head(STRONG).filter(pl.col(column) < DIVIDED)
            if rows.height:
                names = [f"{name} ({share:.0%})" for name, share in rows.select("component", column).iter_rows()]
                said.append(
                    f"{group.task}, {group.wrong_answer}: few prompts have the sign of the mean of {', '.join(names)}. "
                    "Their means join different behaviours; look at single templates."
                )
    return said


def _silent(data: ReportData) -> list[str]:
    """Parts without gradient, once for all groups in which they are the same."""

    def silent(group: Key) -> tuple[str, ...]:
        parts = data.parts(group)
        floor = SILENT_SHARE * pl.col("grad_norm_mean").max()
        return tuple(parts.filter(pl.col("grad_norm_mean") <= floor)["component"].sort())

    return [
        f"{_where(data, groups)}: no gradient reaches {_first(names, ', ')}. Saturated attention or a dead MLP looks "
        "like this: ablate them before calling them idle."
        for names, groups in _by(data, silent).items()
        if names
    ]


def _left_out(data: ReportData) -> list[str]:
    unranked = [group for group in data.all_groups if group not in data.ranked_groups]
    beyond = len(data.ranked_groups) - len(data.groups)
    said = [f"{_first([', '.join(group) for group in unranked], '; ')}: no component has a finite score."]
    more = [f"{beyond} further pairs of task and wrong answer do not fit this page; gbcd.summary has them."]
    return (said if unranked else []) + (more if beyond else [])


def _by(data: ReportData, value: Callable[[Key], Value]) -> dict[Value, list[Key]]:
    """Groups by a value that several may share."""
    found: dict[Value, list[Key]] = {}
    for group in data.groups:
        found.setdefault(value(group), []).append(group)
    return found


def _where(data: ReportData, groups: Sequence[Key]) -> str:
    if len(groups) == len(data.groups) > 1:
        return "Every task and wrong answer"
    return _first([f"{group.task}, {group.wrong_answer}" for group in groups], "; ")


def _first(names: Sequence[str], between: str) -> str:
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return between.join(names[:NAMED]) + rest
