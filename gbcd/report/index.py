"""The first page of a study of several models: what was found with each, and the way to its report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from gbcd.report.caveats import warnings
from gbcd.report.findings import read_findings
from gbcd.report.page import REPORT, style
from gbcd.run.results import SUMMARY_FILE
from gbcd.run.store import Store

#: Components named for a task and wrong answer.
NAMED = 5


class PartOfIndex(NamedTuple):
    """What the page says of one model; `link` is empty where nothing was reduced yet."""

    title: str
    said: str
    link: str
    rows: Sequence[tuple[str, str, str]]
    warnings: Sequence[str]


def is_reduced(folder: str) -> bool:
    """True where a report can be written: the folder has a summary."""
    return Store(folder).exists(SUMMARY_FILE)


def write_index(out: str, folders: Sequence[str]) -> str:
    """Write `report.html` into the folder of a study of several models; returns where it lies.

    Args:
        out: the folder of the study.
        folders: those of its models, under `out`.
    """
    parts = [_part(folder) for folder in folders]
    environment = Environment(loader=PackageLoader("gbcd.report", "."), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("index.html.j2").render(
        title=f"A study of {len(parts)} models", style=style(), parts=parts
    )
    store = Store(out)
    store.write(REPORT, page.encode())
    return f"{store.location}/{REPORT}"


def _part(folder: str) -> PartOfIndex:
    name = folder.rstrip("/").rsplit("/", 1)[-1]
    if not is_reduced(folder):
        return PartOfIndex(name, "Nothing is reduced yet: run the study again to go on with it.", "", (), ())
    findings = read_findings(folder)
    rows = [
        (group.task, group.wrong_answer, ", ".join(findings.strongest(group, NAMED)) or "none above zero")
        for group in findings.groups
    ]
    computed = sum(commit.n_prompts for commit in findings.commits)
    model = findings.plan.study.model
    said = f"{computed:,} of {findings.plan.n_prompts:,} prompts{'' if model == name else f'; model {model}'}."
    return PartOfIndex(name, said, f"{name}/{REPORT}", rows, warnings(findings))
