"""Sections without pictures: what was run and at what cost, and what to be wary of."""

from __future__ import annotations

import textwrap
from datetime import timedelta

import polars as pl

from gbcd.gradients.tables import OK
from gbcd.job.results import prompts
from gbcd.printing import duration
from gbcd.report.charts import Section, Table
from gbcd.report.findings import Findings

#: A task is warned of when the model gets more than this share of its prompts wrong.
TOLERATED_WRONG = 0.1

#: A part counts as without gradient when its mean norm is below this share of the largest part's.
SILENT_SHARE = 1e-6

#: Letters of an example.
EXAMPLE_WIDTH = 240

#: Parts that a warning names.
NAMED = 8


def what_was_run(findings: Findings) -> Section:
    """Model, prompts, wrong answers, versions, cost."""
    plan, study = findings.plan, findings.plan.study
    source = ", ".join(study.tasks) if study.prompts is None else f"file {study.prompts}"
    versions = ", ".join(f"{name} {version}" for name, version in plan.identity.versions.items())
    rows = [
        ("model", f"{study.model}, weights {plan.identity.hashes['model'][:12]}"),
        ("tasks", source),
        ("prompts", f"{sum(c.n_prompts for c in findings.commits):,} of {plan.n_prompts:,}, seed {study.seed}"),
        ("wrong answers", ", ".join(study.wrong_answers)),
        (
            "computed with",
            f"{study.device}, {study.dtype}, batches of {study.batch_size}, threads per worker: {study.threads}",
        ),
        ("cost", _cost(findings)),
        ("versions", versions),
        ("results", findings.store.location),
    ]
    rows[2:2] = _example(findings)
    table = Table("The study", ("", ""), rows)
    return Section("study", "What was run", _in_a_sentence(findings), tables=(table,))


def warnings(findings: Findings) -> list[str]:
    """What a reader must know before believing the rest; one sentence each."""
    return [*_missing(findings), *_statuses(findings), *_wrong(findings), *_silent(findings), *_left_out(findings)]


def _in_a_sentence(findings: Findings) -> str:
    group = findings.groups[0]
    best = findings.nodes(group)["component"].head(5).to_list()
    return (
        f"Highest scores for {group.task} with {group.wrong_answer}: {', '.join(best)}. "
        "a3.h5 is head 5 of layer 3, m3 the MLP of layer 3; both count from 0, the input's side first."
    )


def _example(findings: Findings) -> list[tuple[str, str]]:
    """A prompt with its answer: the behaviour in question, for whoever does not know the task by its name."""
    said: list[tuple[str, str]] = []
    for task in dict.fromkeys(group.task for group in findings.groups):
        first = prompts(findings.store.location).filter(pl.col("task") == task).select("prompt", "answer").head(1)
        for prompt, answer in first.collect().iter_rows():
            shown = " → ".join(textwrap.shorten(text, EXAMPLE_WIDTH) for text in (prompt, answer))
            said.append((f"a prompt of {task}", shown))
    return said


def _cost(findings: Findings) -> str:
    if not findings.commits:
        return "nothing is committed"
    seconds = sum(commit.seconds for commit in findings.commits)
    n_prompts = sum(commit.n_prompts for commit in findings.commits)
    size = sum(file.bytes for commit in findings.commits for file in commit.files.values())
    moments = [commit.committed_at for commit in findings.commits]
    spread = max(moments) - min(moments)
    between = (
        f"; {duration(spread.total_seconds())} from the first shard written to the last"
        if spread > timedelta(0)
        else ""
    )
    rate = f"{n_prompts / seconds:,.0f} prompts/s a worker" if seconds else "too quick to time"
    return f"{duration(seconds)} of computing, summed over workers ({rate}), {size / 1e6:,.1f} MB of tables{between}"


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
    return [f"{count:,} rows are {status}; see gbcd.prompts." for status, count in counts.items() if status != OK]


def _wrong(findings: Findings) -> list[str]:
    first = findings.plan.study.wrong_answers[0]
    rows = prompts(findings.store.location).filter(pl.col("wrong_answer") == first)
    shares = rows.group_by("task").agg(pl.col("correct").mean(), pl.len()).sort("task").collect()
    return [
        f"The model gets {1 - right:.0%} of the {n:,} prompts of {task} wrong: its gradients there say little about a "
        "circuit that solves the task."
        for task, right, n in shares.iter_rows()
        if right is not None and 1 - right > TOLERATED_WRONG
    ]


def _silent(findings: Findings) -> list[str]:
    said: list[str] = []
    for group in findings.groups:
        parts = findings.parts(group)
        floor = SILENT_SHARE * float(parts["grad_norm_mean"].to_numpy().max())
        silent = parts.filter(pl.col("grad_norm_mean") <= floor)["component"].to_list()
        if silent:
            named = ", ".join(silent[:NAMED]) + (f" and {len(silent) - NAMED} more" if len(silent) > NAMED else "")
            said.append(
                f"{group.task}, {group.wrong_answer}: no gradient reaches {named}. Saturated attention or a dead unit "
                "looks like this: ablate them before calling them idle."
            )
    return said


def _left_out(findings: Findings) -> list[str]:
    rest = findings.all_groups[len(findings.groups) :]
    said = f"{len(rest)} further pairs of task and wrong answer do not fit this page; gbcd.summary has them."
    return [said] if rest else []
