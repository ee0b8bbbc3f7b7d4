"""The charts of the report as PNG files for a paper, one per chart, task and wrong answer, at 300 dots per inch.

What is the same for all wrong answers of a task is drawn once for the task.

Controls stand where they stand when the page is opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import vl_convert

from gbcd.report.charts import DATA, GROUP, Chart, Control, key
from gbcd.report.findings import Findings, read_findings
from gbcd.report.page import sections
from gbcd.report.theme import LIGHT, theme

#: Of a figure, in pixels at 72 dots per inch.
WIDTH = 460

DOTS_PER_INCH = 300

#: Around a figure, in the same pixels.
MARGIN = 10

#: What the renderer brings itself, so that figures look the same on every machine.
FONT = "Liberation Sans, Arial, sans-serif"


def write_figures(out: str, folder: Path) -> list[Path]:
    """Draw every chart of a study into `folder`; returns the files.

    Raises:
        BadInput: there is no study in `out`, or it was not reduced.
    """
    findings = read_findings(out)
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for name, specification in _filled(findings):
        path = folder / f"{name}.png"
        path.write_bytes(vl_convert.vegalite_to_png(specification, ppi=DOTS_PER_INCH))
        written.append(path)
    return written


def _filled(findings: Findings) -> Iterator[tuple[str, dict[str, Any]]]:
    for section in sections(findings):
        for chart in section.charts:
            files = {
                f"{chart.name}_{group.task}" + ("" if chart.is_of_task else f"_{group.wrong_answer}"): _opening_key(
                    chart, section.controls, index
                )
                for index, group in enumerate(findings.groups)
            }
            for file, name in files.items():
                if name in chart.tables and chart.tables[name].height:
                    yield file, _specification(chart, name)


def _opening_key(chart: Chart, controls: tuple[Control, ...], group: int) -> str:
    opening = {control.name: next(iter(control.options)) for control in controls} | {GROUP: str(group)}
    return key(*(opening[name] for name in chart.controls))


def _specification(chart: Chart, name: str) -> dict[str, Any]:
    specification = chart.specification() | {"width": min(WIDTH, chart.max_width or WIDTH)}
    height = chart.height(name)
    sized = specification if height is None else specification | {"height": height}
    look = theme(LIGHT, FONT) | {"padding": MARGIN}
    return sized | {"datasets": {DATA: chart.tables[name].to_dicts()}, "config": look}
