"""From sections to one HTML file: libraries, styles, script and data inside it, nothing fetched, all text escaped.

Data are one JSON document, compressed and in base64, so that no text of a prompt is ever read as markup or script; the
policy in the page's head forbids the network besides.
"""

from __future__ import annotations

import base64
import gzip
import json
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gbcd.report import (
    agreement,
    circuit_graph,
    effects,
    example_prompts,
    in_short,
    layers_and_heads,
    overview,
    settling,
    strongest,
    words,
)
from gbcd.report.caveats import warnings
from gbcd.report.charts import DATA, GROUP, Chart, Control, Section, key
from gbcd.report.findings import Findings, read_findings
from gbcd.report.theme import DARK, LIGHT, theme, variables

REPORT = "report.html"


class Written(NamedTuple):
    """Where a report lies, and what its reader is warned of."""

    location: str
    warnings: list[str]


def write_report(out: str) -> Written:
    """Write `report.html` into the results folder of one model.

    Raises:
        BadInput: there is no study in it, or it was not reduced.
    """
    findings = read_findings(out)
    findings.store.write(REPORT, page(findings).encode())
    return Written(f"{findings.store.location}/{REPORT}", warnings(findings))


def sections(findings: Findings) -> list[Section]:
    """What there is to say, in the order of the page."""
    every = [
        in_short.section(findings),
        overview.what_was_run(findings),
        layers_and_heads.section(findings),
        strongest.top_components(findings),
        effects.section(findings),
        circuit_graph.section(findings),
        agreement.section(findings),
        strongest.over_prompts(findings),
        settling.section(findings),
        example_prompts.section(findings),
        overview.computed(findings),
        words.section(),
    ]
    return [section for section in every if section is not None]


def page(findings: Findings) -> str:
    """The whole file."""
    found = sections(findings)
    groups = {key(index): f"{task}, {wrong_answer}" for index, (task, wrong_answer) in enumerate(findings.groups)}
    environment = Environment(loader=PackageLoader("gbcd.report", "."), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html.j2").render(
        title=overview.title(findings),
        facts=overview.facts(findings),
        standing=overview.standing(findings),
        warnings=warnings(findings),
        sections=found,
        group=Control(GROUP, "Task and wrong answer", groups),
        libraries=_libraries(),
        style=style(),
        script=asset("page.js"),
        data=_packed(found),
    )


def _packed(found: list[Section]) -> str:
    controls = [control for section in found for control in section.controls]
    content: dict[str, Any] = {
        "dataset": DATA,
        "themes": {"light": theme(LIGHT), "dark": theme(DARK)},
        "labels": {control.name: control.by_group for control in controls if control.by_group},
        "charts": {chart.name: _described(chart) for section in found for chart in section.charts},
    }
    packed = gzip.compress(json.dumps(content, allow_nan=False, separators=(",", ":")).encode(), mtime=0)
    return base64.b64encode(packed).decode()


def _described(chart: Chart) -> dict[str, Any]:
    return {
        "specification": chart.specification(),
        "controls": chart.controls,
        "columns": chart.columns,
        "rowHeight": chart.row_height and chart.row_height._asdict(),
        "tables": {name: chart.rows(name) for name in chart.tables},
    }


@cache
def _libraries() -> Markup:
    """Vega, Vega-Lite and Vega-Embed as one script, from the package that also draws the figures."""
    script = vl_convert.javascript_bundle()  # pyright: ignore[reportCallIssue]  (the stub lacks the default)
    return Markup(script.replace("</script", "<\\/script"))


def style() -> Markup:
    """The style sheet, with the colours that charts have too."""
    return Markup(variables()) + asset("page.css")


def asset(name: str) -> Markup:
    """A file of the page, which is ours and no text of a prompt."""
    return Markup(resources.files("gbcd.report").joinpath(name).read_text(encoding="utf-8"))
