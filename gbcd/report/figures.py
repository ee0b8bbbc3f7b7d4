"""The charts of the report as PNG files for a paper, one per chart, task and wrong answer, at 300 dots per inch.

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

#: Of a figure, in pixels at 72 dots per inch.
WIDTH = 460

DOTS_PER_INCH = 300

_CONFIG = {"view": {"stroke": None}, "background": "white"}


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
            for index, group in enumerate(findings.groups):
                table = chart.tables.get(_opening_key(chart, section.controls, index))
                if table is not None and table.height:
                    rows = table.to_dicts()
                    yield f"{chart.name}_{group.task}_{group.wrong_answer}", _specification(chart, rows)


def _opening_key(chart: Chart, controls: tuple[Control, ...], group: int) -> str:
    opening = {control.name: next(iter(control.options)) for control in controls} | {GROUP: str(group)}
    return key(*(opening[name] for name in chart.controls))


def _specification(chart: Chart, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {**chart.specification(), "width": WIDTH, "datasets": {DATA: rows}, "config": _CONFIG}
