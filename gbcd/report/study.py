"""Sections about the study itself: what was asked, how it was computed, and what the words mean."""

from __future__ import annotations

import textwrap
import tomllib
from collections.abc import Iterator
from importlib import resources

from gbcd import wrong_answers
from gbcd.analysis.ranking import CIRCUIT_SHARE
from gbcd.evaluation.recovery import MEMBER_SHARE
from gbcd.report.charts import Section, Table
from gbcd.report.data import ReportData, last
from gbcd.report.prompts import answers

#: Letters of an example.
EXAMPLE_WIDTH = 240


def title(data: ReportData) -> str:
    """Tasks, or the file of prompts, and the model; what is the same is said once."""
    tasks = ", ".join(dict.fromkeys(key.task for key in data.keys)) if data.source is None else last(data.source)
    model = last(data.model)
    return tasks if tasks == model else f"{tasks} in {model}"


def what_was_run(data: ReportData) -> Section:
    """Tasks with a prompt of each, and what the loss pulled towards."""
    tasks = Table(
        ("task", "a prompt", "answer", "wrong answer", "prompts", "first choice is right", "right above wrong"),
        list(_tasks(data)),
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
        picked = row["wrong_token"]
        wrong = "-" if picked is None else f"{answers(picked)}, by {row['wrong_answer']}"
        yield (row["task"], prompt, answers(row["answer"]), wrong, f"{row['n']:,}", *shares)


def _definition(name: str) -> str:
    if name not in wrong_answers.names():
        return "Defined by the study's own module."
    return wrong_answers.get(name).summary.replace("`", "")


def how_computed(data: ReportData) -> Section:
    """What it takes to do it again."""
    return Section("computed", "How it was computed", "", tables=(Table(("", ""), data.computed),))


def words() -> Section:
    """The last section."""
    text = resources.files("gbcd.report").joinpath("words.toml").read_text(encoding="utf-8")
    shares = {"member": f"{MEMBER_SHARE:.0%}", "circuit": f"{CIRCUIT_SHARE:.0%}"}
    found = [(word, said.format(**shares)) for word, said in tomllib.loads(text).items()]
    return Section("words", "Words", "", tables=(Table(("", ""), found),))
