"""What a reader must know before believing the rest, as warnings at the top of the page and on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from gbcd.analysis.ranking import DEFAULT_SCORES as SCORES
from gbcd.analysis.shard_values import Key
from gbcd.engine.calibration import MIN_PROMPTS
from gbcd.engine.tables import FAILED, NON_FINITE, OK, UNCALIBRATED
from gbcd.report.findings import Findings
from gbcd.run.results import prompts

#: A task is warned of when the model gets more than this share of its prompts wrong.
TOLERATED_WRONG = 0.1

#: A part counts as without gradient when its mean norm is below this share of the largest part's.
SILENT_SHARE = 1e-6

#: A task with fewer templates is warned of.
FEW_TEMPLATES = 5

#: Parts, and pairs of task and wrong answer, that a warning names.
NAMED = 8


#: What is said of rows of the table of prompts that are not in every mean.
STATUSES = {
    NON_FINITE: "have values that are not finite, and are in no mean",
    UNCALIBRATED: "have no centred norm, since the calibration sample does not reach their length or template",
    FAILED: "are of prompts on which the computation failed, and are in no mean",
}


def warnings(findings: Findings) -> list[str]:
    """One sentence or two each."""
    return [
        *_missing(findings),
        *_statuses(findings),
        *_wrong(findings),
        *_ranked(findings),
        *_templates(findings),
        *_silent(findings),
        *_left_out(findings),
    ]


def _missing(findings: Findings) -> list[str]:
    missing = len(findings.plan.shards) - len(findings.commits)
    said = [f"{missing} of {len(findings.plan.shards)} shards are missing; the command that started the study goes on."]
    given_up = [f"Given up: {record.in_words}." for record in findings.quarantined]
    return (said if missing else []) + given_up


def _statuses(findings: Findings) -> list[str]:
    counts: dict[str, int] = {}
    for commit in findings.commits:
        for status, count in commit.statuses.items():
            counts[status] = counts.get(status, 0) + count
    return [
        f"{count:,} rows {STATUSES[status]} (status {status} in gbcd.prompts)."
        for status, count in counts.items()
        if status != OK
    ]


def _wrong(findings: Findings) -> list[str]:
    first = findings.plan.study.wrong_answers[0]
    rows = prompts(findings.store.location).filter(pl.col("wrong_answer") == first)
    shares = rows.group_by("task").agg(pl.col("correct").mean(), pl.len()).sort("task").collect()
    return [
        f"The model gets {1 - right:.0%} of the {n:,} prompts of {findings.source(task)} wrong: its gradients there "
        "say little about a circuit that solves the task."
        for task, right, n in shares.iter_rows()
        if right is not None and 1 - right > TOLERATED_WRONG
    ]


def _ranked(findings: Findings) -> list[str]:
    """Groups that the first choice of score does not rank."""
    groups: dict[str, list[Key]] = {}
    for group, statistic in findings.ranked_by.items():
        if statistic != SCORES[0]:
            groups.setdefault(statistic, []).append(group)
    return [
        f"{_where(findings, found)}: ranked by {statistic}, the weaker score. Too few prompts share a template and a "
        f"length for centring; give at least {MIN_PROMPTS} of each."
        for statistic, found in groups.items()
    ]


def _templates(findings: Findings) -> list[str]:
    """Tasks with so few templates that intervals, which take them for clusters, mean little."""
    counts = findings.summary.group_by("task", maintain_order=True).agg(pl.col("n_templates").max())
    return [
        f"Intervals of {findings.source(task)} rest on {n} templates and say little."
        if n > 1
        else f"All prompts of {findings.source(task)} are of one template: intervals say nothing of others."
        for task, n in counts.iter_rows()
        if n < FEW_TEMPLATES
    ]


def _silent(findings: Findings) -> list[str]:
    """Parts without gradient, once for all groups in which they are the same."""
    groups: dict[tuple[str, ...], list[Key]] = {}
    for group in findings.groups:
        parts = findings.parts(group)
        floor = SILENT_SHARE * pl.col("grad_norm_mean").max()
        silent = parts.filter(pl.col("grad_norm_mean") <= floor)["component"].sort().to_list()
        if silent:
            groups.setdefault(tuple(silent), []).append(group)
    return [
        f"{_where(findings, found)}: no gradient reaches "
        f"{_first(silent, ', ')}. Saturated attention or a dead unit looks like this: ablate them before calling them "
        "idle."
        for silent, found in groups.items()
    ]


def _where(findings: Findings, groups: Sequence[Key]) -> str:
    if len(groups) == len(findings.groups) > 1:
        return "Every task and wrong answer"
    return _first([f"{group.task}, {group.wrong_answer}" for group in groups], "; ")


def _first(names: Sequence[str], between: str) -> str:
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return between.join(names[:NAMED]) + rest


def _left_out(findings: Findings) -> list[str]:
    rest = findings.all_groups[len(findings.groups) :]
    said = f"{len(rest)} further pairs of task and wrong answer do not fit this page; gbcd.summary has them."
    return [said] if rest else []
