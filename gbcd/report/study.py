"""Sections about the study itself: what was asked, how it was computed, and what the words mean."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from gbcd import wrong_answers
from gbcd.analysis.ranking import CIRCUIT_SHARE
from gbcd.evaluation.recovery import MEMBER_SHARE
from gbcd.report.charts import Section, Table
from gbcd.report.data import ReportData, last
from gbcd.report.prompts import answers

#: Letters of an example.
EXAMPLE_WIDTH = 240

_WORDS = {
    "a3.h5, m3": "Head 5 of layer 3 and the MLP of layer 3. Heads have the parts q, k, v and o, MLPs in and out (gate, "
    "up and down where they are gated); g1 is a group of heads that share keys and values.",
    "wrong answer": "What the loss pulls the model towards, one prompt at a time.",
    "reference": "What a prompt is compared with: its counterfactual, or where it has none a partner, another prompt "
    "of the same template and length.",
    "attribution": "Inner product of the gradient at a component's output with the difference between this output and "
    "that on the reference (attribution patching). Its score is the size of the mean over prompts. From the mean: "
    "compared with the mean over prompts of a template; Taylor: with zero.",
    "same sign": "Share of the prompts whose attribution has the sign of the mean.",
    "norm": "Frobenius norm of the gradient of the weights by which a component writes to the residual stream (o of a "
    "head, out or down of an MLP), with the mean input of the template taken out. Centred norm and gradient norm, all "
    "parts: of all its weights, with that and without. Contrast norm: with the input on the reference taken out.",
    "95 %": "Interval of a mean if other templates of the same kind had been drawn; templates are clusters. With one "
    "template it is over its prompts alone.",
    "effect": "Drop of the task's metric when a component is replaced by its value on the reference (resampling), by "
    "its mean, or by zero; in per cent of the gap.",
    "gap": "The metric on the prompts less that on their references.",
    "measured circuit": f"Components whose effect is at least {MEMBER_SHARE:.0%} of the gap, in either direction.",
    "Spearman": "Rank correlation of scores and sizes of effects: 1 is the same order, 0 no relation.",
    "AUROC, AUPRC": "How well a score tells the measured circuit from the rest: areas under true against false "
    "positives, and under precision against recall. 1 is best; the first is 0.5 by chance.",
    "faithfulness": "Share of the gap that is left when everything outside a circuit is replaced as for an effect. "
    f"Where one size speaks for all, the circuit is the best {CIRCUIT_SHARE:.0%} of the components.",
    "CPR, CMD": "Area under the curve of faithfulness over the size of the circuit, and area between it and 1: the "
    "first should be large, the second small. Circuits are of components, or of edges.",
}


def title(data: ReportData) -> str:
    """Tasks, or the file of prompts, and the model; what is the same is said once."""
    tasks = ", ".join(dict.fromkeys(key.task for key in data.keys)) if data.source is None else last(data.source)
    model = last(data.model)
    return tasks if tasks == model else f"{tasks} in {model}"


def what_was_run(data: ReportData) -> Section:
    """Tasks with a prompt of each, and what the loss pulled towards."""
    tasks = Table(
        ("task", "a prompt", "answer", "prompts", "first choice is right", "right above wrong"), list(_tasks(data))
    )
    definitions = Table(
        ("wrong answer", "the loss"),
        [(name, _definition(name)) for name in data.wrong_answers],
    )
    return Section("study", "What was run", "", tables=(tasks, definitions))


def _tasks(data: ReportData) -> Iterator[tuple[str, ...]]:
    for row in data.examples.iter_rows(named=True):
        shares = ["-" if row[name] is None else f"{row[name]:.0%}" for name in ("correct", "above_wrong")]
        prompt = textwrap.shorten(row["prompt"], EXAMPLE_WIDTH)
        yield (row["task"], prompt, answers(row["answer"]), f"{row['n']:,}", *shares)


def _definition(name: str) -> str:
    if name not in wrong_answers.names():
        return "Defined by the study's own module."
    return wrong_answers.get(name).summary.replace("`", "")


def how_computed(data: ReportData) -> Section:
    """What it takes to do it again."""
    return Section("computed", "How it was computed", "", tables=(Table(("", ""), data.computed),))


def words() -> Section:
    """The last section."""
    return Section("words", "Words", "", tables=(Table(("", ""), list(_WORDS.items())),))
