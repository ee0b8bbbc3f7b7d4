"""What to distrust, as warnings at the top of the page and on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import polars as pl

from gbcd.analysis.ranking import MIN_SHARE
from gbcd.engine.tables import FAILED, NON_FINITE, OK, UNCALIBRATED
from gbcd.printing import counted
from gbcd.report.data import Group, ReportData, label

Value = TypeVar("Value", bound=Hashable)

#: A task is warned of when the model gets more than this share of its prompts wrong.
TOLERATED_WRONG = 0.1

#: A part counts as without gradient when its mean norm is below this share of the largest part's.
SILENT_SHARE = 1e-6

#: A strong component is warned of when fewer prompts have the sign of its mean, in per cent; how many count as strong.
DIVIDED, STRONG = 70, 10

#: With fewer templates an interval says little.
FEW_TEMPLATES = 5

#: Effects over fewer pairs are warned of, and how many to take.
FEW_PAIRS, ENOUGH_PAIRS = 16, 32

#: Names that a warning lists.
NAMED = 8

#: What is said of prompts that are not in every mean.
STATUSES = {
    NON_FINITE: "with values that are not finite, in no mean",
    UNCALIBRATED: "without a centred norm, since the calibration sample does not reach their length or template",
    FAILED: "on which the computation failed, in no mean",
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
        *_pairs(data),
        *_divided(data),
        *_silent(data),
        *_left_out(data),
    ]


def _statuses(data: ReportData) -> list[str]:
    by_attribution = {group.score_name for group in data.groups} == {"attribution"}
    spared = {UNCALIBRATED: " Components are ranked by attribution, which needs none."} if by_attribution else {}
    return [
        f"{counted(count, 'prompt')} {STATUSES[status]} (status {status} in gbcd.prompts).{spared.get(status, '')}"
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

    def weaker(group: Group) -> str | None:
        n, n_prompts = group.nodes.select("attribution_n", "n_prompts").row(0)
        return group.score_name if n < MIN_SHARE * n_prompts else None

    return [
        f"{where}: ranked by {label(name)}, since fewer than {MIN_SHARE:.0%} of the prompts have a counterfactual or a "
        "partner."
        for name, where in _by(data.groups, weaker).items()
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


def _pairs(data: ReportData) -> list[str]:
    """Tasks whose effects, and all figures with them, are of few prompts."""
    counts = data.measured.effects.group_by("task", maintain_order=True).agg(pl.col("n_pairs").max())
    return [
        f"Effects of {data.called(task)} are over {counted(n, 'pair')}: take {ENOUGH_PAIRS} or more."
        for task, n in counts.iter_rows()
        if n < FEW_PAIRS
    ]


def _divided(data: ReportData) -> list[str]:
    """Strong components whose sign differs between prompts."""

    def divided(group: Group) -> str:
        rows = group.scores.head(STRONG).filter(pl.col("agreement") < DIVIDED)
        return ", ".join(f"{name} ({share:.0f} %)" for name, share in rows.select("component", "agreement").iter_rows())

    return [
        f"{where}: few prompts have the sign of the mean of {names}. Their means join different behaviours; look at "
        "single templates."
        for names, where in _by(data.groups, divided).items()
        if names
    ]


def _silent(data: ReportData) -> list[str]:
    """Parts without gradient, once for all groups in which they are the same."""

    def silent(group: Group) -> tuple[str, ...]:
        floor = SILENT_SHARE * pl.col("grad_norm_mean").max()
        return tuple(group.parts.filter(pl.col("grad_norm_mean") <= floor)["component"].sort())

    return [
        f"{where}: no gradient reaches {_first(names, ', ')}. Saturated attention or a dead MLP looks like this: "
        "ablate them before calling them idle."
        for names, where in _by(data.groups, silent).items()
        if names
    ]


def _left_out(data: ReportData) -> list[str]:
    ranked = [group.key for group in data.ranked]
    unranked = [", ".join(key) for key in data.keys if key not in ranked]
    beyond = len(data.ranked) - len(data.groups)
    said = [f"{_first(unranked, '; ')}: no component has a finite score."]
    more = [f"{beyond} further pairs of task and wrong answer do not fit this page; gbcd.summary has them."]
    return (said if unranked else []) + (more if beyond else [])


def _by(groups: list[Group], value: Callable[[Group], Value]) -> dict[Value, str]:
    """What a warning begins with, by a value that several groups may share."""
    found: dict[Value, list[str]] = {}
    for group in groups:
        found.setdefault(value(group), []).append(group.title)
    every = "Every task and wrong answer"
    return {
        shared: every if len(titles) == len(groups) > 1 else _first(titles, "; ") for shared, titles in found.items()
    }


def _first(names: Sequence[str], between: str) -> str:
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return between.join(names[:NAMED]) + rest
