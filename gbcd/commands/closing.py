"""What a run found, what is missing, and what to do next: the last words of `gbcd run`, and the table of `gbcd reduce`.

The highest scores of every task and wrong answer are shown, attribution and norm side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from shlex import quote
from typing import TYPE_CHECKING, Any

import polars as pl
from rich.console import Console

from gbcd import tasks
from gbcd.analysis.edges import read_neurons
from gbcd.printing import counted, duration, fact, failed_prompts, heading, line, number, table
from gbcd.run.inputs import Inputs
from gbcd.run.store import Store
from gbcd.wrong_answers import sign_of

if TYPE_CHECKING:
    from gbcd.pipeline import Run
    from gbcd.study import Study

#: Prompts of a task that are looked at for a reference.
SAMPLE = 64

#: Nodes listed per task and wrong answer.
TOP = 10

#: Beyond as many tasks and wrong answers, each has a line instead of a table.
MAX_TABLES = 8

#: Attributions and norms, of which the first that was computed is shown.
_ATTRIBUTIONS = ("attribution", "mean_attribution", "taylor")
_NORMS = ("writing_norm", "grad_norm")

MEANINGS = {
    "attribution": "what a component's output adds to the loss, to first order, in place of its output on the "
    "reference (the counterfactual or a partner)",
    "mean_attribution": "what a component's output adds to the loss, to first order, in place of its mean output",
    "taylor": "what a component's output adds to the loss, to first order, in place of zero",
    "writing_norm": "size of the loss's gradient with respect to the weights that a component writes with, their input "
    "less its mean over prompts at the same position: how hard the loss pulls at it; it has no sign",
    "grad_norm": "size of the loss's gradient with respect to a component's weights: how hard the loss pulls at it; it "
    "has no sign",
}
"""What a statistic says, in a sentence."""


def closing_summary(run: Run, console: Console) -> None:
    """Print what was found, what is missing, and where it lies."""
    if run.summary is not None:
        show_results(run.summary, console)
        if (neurons := read_neurons(Store(run.out))) is not None:
            show_neurons(neurons, console)
    for task in _short_tasks(run):
        fact(console, "Fewer", task)
    failed_prompts(console, run.failed)
    fact(console, "Computed", _computed(run))
    if run.left_to_others:
        left = f"not committed yet, of other slices: {counted(len(run.left_to_others), 'shard')}"
        fact(
            console, "Slice", f"{run.part}; {left}. The last one writes summary and report, or gbcd run without --slice"
        )
    fact(console, "Results", run.out)
    fact(console, "Names", "a3.h5 is head 5 of layer 3, m3 the MLP of layer 3; both count from 0")


def next_step(study: Study, run: Run, console: Console) -> None:
    """Print the command that comes after a run; nothing where nothing was computed."""
    if run.summary is None:
        return
    inputs = Inputs(Store(run.out), run.plan)
    samples = (inputs.sample(task, SAMPLE) for task in run.plan.tasks)
    if not any(one.reference_ids is not None or one.outputs is not None for some in samples for one in some):
        fact(
            console, "Next", "open the report. Effects cannot be measured: no prompt has a counterfactual or a partner"
        )
        return
    own = "".join(f" --definitions {quote(file)}" for file in study.definitions)
    fact(console, "Next", f"gbcd evaluate {quote(study.out)}{own}   (what ablation says of it)")


def _computed(run: Run) -> str:
    """Prompts, shards and time, in a line."""
    n_done, before = run.n_prompts - len(run.failed), f", {run.found:,} of them before" if run.found else ""
    shards = f"{len(run.commits):,} of {counted(len(run.plan.shards), 'shard')}{before}"
    return f"{n_done:,} of {counted(run.plan.n_prompts, 'prompt')}, in {shards}; this run took {duration(run.seconds)}"


def unfinished(run: Run) -> str | None:
    """What is missing at the end, in a sentence; None if nothing is."""
    said = [f"{len(run.missing):,} of {len(run.plan.shards):,} shards are missing."] if run.missing else []
    if run.failed:
        again = f"gbcd verify --repair {quote(run.out)}"
        said.append(f"{counted(len(run.failed), 'prompt')} failed; `{again}` tries again.")
    return " ".join(said) or None


def _short_tasks(run: Run) -> Iterator[str]:
    """Finite tasks with fewer prompts than were asked for, because there are no more."""
    asked = run.plan.study.prompts_per_task
    for task in run.plan.study.tasks:
        count = sum(shard.n_prompts for shard in run.plan.shards if shard.task == task)
        if asked is not None and count < asked and tasks.get(task).is_finite:
            yield f"{counted(count, 'prompt')} of {task}, which are all inputs of its model"


def show_results(summary: pl.DataFrame, console: Console) -> None:
    """Print a table for each task and wrong answer of a summary (a line, where there are many), and what it shows."""
    groups = list(_groups(summary))
    shown: list[str] = []
    signs: dict[str, list[str]] = {}
    for title, nodes in groups:
        if nodes["score_name"][0] is None:
            line(console, f"\n{title}: none of its {counted(nodes['n_prompts'][0], 'prompt')} has finite values")
        elif len(groups) > MAX_TABLES:
            best = nodes.filter(pl.col("rank") <= TOP).sort("rank")
            line(console, f"{title} (by {best['score_name'][0]}): {', '.join(best['component'])}")
        else:
            shown += (statistics := _show(title, nodes, console))
            if any(name in _ATTRIBUTIONS for name in statistics):
                signs.setdefault(sign_of(nodes["wrong_answer"][0]), []).append(nodes["wrong_answer"][0])
    console.print()
    ranks = set(summary["score_name"])
    for statistic in dict.fromkeys(shown):
        compared = "" if statistic in ranks else "; it is for comparison, and does not rank"
        fact(console, _label(statistic).capitalize(), MEANINGS[statistic] + compared)
    if any(statistic in _ATTRIBUTIONS for statistic in shown):
        fact(console, "Same sign", "share of the prompts whose attribution has the sign of the mean")
    for sign, names in signs.items():
        fact(console, "Sign", f"{', '.join(dict.fromkeys(names))}: {sign}")


def show_neurons(neurons: pl.DataFrame, console: Console) -> None:
    """Print the neurons with the largest attributions of each task and wrong answer; nothing where there are many."""
    groups = neurons.partition_by("task", "wrong_answer", as_dict=True, maintain_order=True)
    for (task, wrong_answer), rows in groups.items() if len(groups) <= MAX_TABLES else ():
        heading(
            console, f"{task}, {wrong_answer}: neurons by attribution, means over {counted(rows['n'][0], 'prompt')}"
        )
        cells = [
            [row["node"], str(row["neuron"]), *_attribution(row)]
            for row in rows.top_k(TOP, by=pl.col("mean").abs()).iter_rows(named=True)
        ]
        table(console, ["MLP", "neuron", "attribution", "95 % interval", "same sign"], cells, words=["MLP"])
    console.print()


def _groups(summary: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    nodes = summary.filter(pl.col("level") == "node")
    for (task, wrong_answer), rows in nodes.group_by("task", "wrong_answer", maintain_order=True):
        yield f"{task}, {wrong_answer}", rows


def _show(title: str, nodes: pl.DataFrame, console: Console) -> list[str]:
    """Print one table; returns the statistics that it shows."""
    score, n, n_prompts = (nodes[column][0] for column in ("score_name", "n", "n_prompts"))
    of = counted(n, "prompt") if n == n_prompts else f"{n:,} of {counted(n_prompts, 'prompt')}"
    heading(console, f"{title}: ranked by {score}, means over {of}")
    attribution, norm = (
        score if score in names else next((name for name in names if nodes[f"{name}_n"][0]), None)
        for names in (_ATTRIBUTIONS, _NORMS)
    )
    headings, cells = ["rank", "component"], list[list[str]]()
    if score not in (attribution, norm):
        headings += [score, "95 % interval"]
    if attribution:
        headings += [_heading(nodes, attribution), "95 % interval", "same sign"]
    if norm:
        headings += [_heading(nodes, norm), "95 % interval"]
    for row in nodes.filter(pl.col("rank") <= TOP).sort("rank").iter_rows(named=True):
        cell = [str(row["rank"]), row["component"]]
        if score not in (attribution, norm):
            cell += [number(row["score"]), _interval(row, "score_ci")]
        if attribution:
            signed = {name: row[f"{attribution}_signed_{name}"] for name in ("mean", "ci_low", "ci_high")}
            cell += _attribution({**signed, "sign_agreement": row[f"{attribution}_sign_agreement"]})
        if norm:
            cell += [number(row[f"{norm}_mean"]), _interval(row, f"{norm}_ci")]
        cells.append(cell)
    table(console, headings, cells, words=["component"])
    return [name for name in (attribution, norm) if name]


def _attribution(row: dict[str, Any]) -> list[str]:
    if row["mean"] is None:
        return ["", "", ""]
    return [number(row["mean"], "+"), _interval(row, "ci", "+"), f"{100 * row['sign_agreement']:.0f} %"]


def _heading(nodes: pl.DataFrame, statistic: str) -> str:
    """With the number of prompts where it is not that of the score."""
    n = nodes[f"{statistic}_n"][0]
    return _label(statistic) + ("" if n == nodes["n"][0] else f" (n = {n:,})")


def _label(statistic: str) -> str:
    return "attribution" if statistic in _ATTRIBUTIONS else "norm"


def _interval(row: dict[str, Any], name: str, sign: str = "") -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return "" if low is None else f"{number(low, sign)} to {number(high, sign)}"
