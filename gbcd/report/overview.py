"""The head of the page and the sections about the study itself: what was asked, and how it was computed."""

from __future__ import annotations

import textwrap
from datetime import timedelta

import polars as pl

from gbcd import wrong_answers
from gbcd.printing import counted, duration
from gbcd.report.charts import Section, Table, answers
from gbcd.report.findings import Findings, last
from gbcd.run.results import prompts
from gbcd.run.status import n_prompts
from gbcd.wrong_answers import output_targets

#: Letters of an example.
EXAMPLE_WIDTH = 240


def title(findings: Findings) -> str:
    """Tasks, or the file of prompts, and the model; what is the same is said once."""
    study = findings.plan.study
    tasks = ", ".join(study.tasks) if study.prompts is None else last(study.prompts)
    model = last(study.model)
    return tasks if tasks == model else f"{tasks} in {model}"


def facts(findings: Findings) -> list[str]:
    """The size of the study, in a line."""
    nodes = findings.nodes(findings.groups[0])
    counts = (
        (n_prompts(findings.plan, findings.commits), "prompt"),
        (len({group.task for group in findings.all_groups}), "task"),
        (len({group.wrong_answer for group in findings.all_groups}), "wrong answer"),
    )
    said = [counted(count, name) for count, name in counts]
    return [*said, f"{nodes.height:,} heads and MLPs in {nodes['layer'].n_unique()} layers"]


def standing(findings: Findings) -> str:
    """What the page can and cannot claim."""
    if findings.measured is None:
        return "Gradients are a first hint: confirm with ablation (gbcd evaluate)."
    n_pairs = findings.measured.effects["n_pairs"].max()
    return (
        f"Gradients are a first hint; here they are held against what ablation of up to {n_pairs} prompts a task shows."
    )


def what_was_run(findings: Findings) -> Section:
    """Tasks with a prompt of each, and what the loss pulled towards."""
    tasks = Table("", ("task", "a prompt", "answer", "prompts", "model is right"), _tasks(findings), (3, 4))
    names = dict.fromkeys(group.wrong_answer for group in findings.groups)
    definitions = Table("", ("wrong answer", "the loss"), [(name, _definition(findings, name)) for name in names])
    return Section("study", "What was run", "", tables=(tasks, definitions))


def _tasks(findings: Findings) -> list[tuple[str, ...]]:
    """A line for each: the behaviour in question, for whoever does not know the task by its name."""
    rows: list[tuple[str, ...]] = []
    for task in dict.fromkeys(group.task for group in findings.groups):
        first = findings.plan.study.wrong_answers[0]
        found = prompts(findings.store.location).filter(pl.col("task") == task, pl.col("wrong_answer") == first)
        n, right = found.select(pl.len(), pl.col("correct").mean()).collect().row(0)
        for prompt, answer in found.select("prompt", "answer").head(1).collect().iter_rows():
            rows.append(
                (
                    task,
                    textwrap.shorten(prompt, EXAMPLE_WIDTH),
                    answers(answer),
                    f"{n:,}",
                    "-" if right is None else f"{right:.0%}",
                )
            )
    return rows


def _definition(findings: Findings, name: str) -> str:
    if name not in wrong_answers.names():
        return "Defined by the study's own module."
    no_logits = prompts(findings.store.location).select(pl.col("answer_logit").is_null().all()).collect().item()
    said = output_targets.summary(name) if no_logits else wrong_answers.get(name).summary
    return said.replace("`", "")


def computed(findings: Findings) -> Section:
    """Model, settings, cost, versions: what it takes to do it again."""
    plan, study = findings.plan, findings.plan.study
    rows = [
        ("model", f"{study.model}, weights {plan.identity.hashes['model'][:12]}"),
        ("prompts", f"{n_prompts(plan, findings.commits):,} of {plan.n_prompts:,}, seed {study.seed}"),
        *([] if study.prompts is None else [("prompt file", study.prompts)]),
        (
            "computed with",
            f"{study.device}, {study.dtype}, batches of {study.batch_size}, threads per worker: {study.threads}",
        ),
        ("centred by", f"{study.centering}, over up to {study.calibration_prompts:,} prompts of each task"),
        ("cost", _cost(findings)),
        ("versions", ", ".join(f"{name} {version}" for name, version in plan.identity.versions.items())),
        ("results", findings.store.location),
    ]
    return Section("computed", "How it was computed", "", tables=(Table("", ("", ""), rows),))


def _cost(findings: Findings) -> str:
    if not findings.commits:
        return "nothing is committed"
    seconds = sum(commit.seconds for commit in findings.commits)
    done = n_prompts(findings.plan, findings.commits)
    size = sum(file.bytes for commit in findings.commits for file in commit.files.values())
    moments = [commit.committed_at for commit in findings.commits]
    spread = max(moments) - min(moments)
    between = (
        f"; {duration(spread.total_seconds())} from the first shard written to the last"
        if spread > timedelta(0)
        else ""
    )
    rate = f"{done / seconds:,.0f} prompts/s a worker" if seconds else "too quick to time"
    taken = duration(seconds) if seconds >= 1 else "under 1 s"
    stored = f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB"
    return f"{taken} of computing, summed over workers ({rate}), {stored} of tables{between}"
