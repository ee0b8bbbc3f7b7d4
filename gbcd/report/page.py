"""From a results folder to one HTML file, or to figures for a paper.

Libraries, styles, script and data are inside the page and nothing is fetched. Data are one JSON document, compressed
and in base64, so that no text of a prompt is ever read as markup or script; the policy in the page's head forbids the
network besides. Figures are the same specifications, drawn as they stand when the page is opened.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gbcd.component import file_name
from gbcd.printing import counted
from gbcd.report import circuit, components, effects, findings, prompts, study
from gbcd.report.caveats import warnings
from gbcd.report.charts import DARK, DATA, FIND, GROUP, LIGHT, Chart, Control, Section, key, style_variables, theme
from gbcd.report.data import ReportData, label
from gbcd.report.reading import read_data
from gbcd.run.store import Store

REPORT = "report.html"

#: Width of a figure and the margin around it, in pixels at 72 dots per inch.
FIGURE_WIDTH, MARGIN = 460, 10

#: Dots per inch of figures for a paper, and of the heat maps beside the page.
PAPER, SCREEN = 300, 144

#: What the renderer brings itself, so that figures look the same on every machine.
FONT = "Liberation Sans, Arial, sans-serif"


class Written(NamedTuple):
    """Where a report lies, and what its reader is warned of."""

    location: str
    warnings: list[str]


def write_report(out: str) -> Written:
    """Write `report.html` into a results folder, and beside it the heat map of each task and wrong answer.

    Raises:
        BadInput: there is no study in it, or it was not reduced.
    """
    data, store = read_data(out), Store(out)
    store.write(REPORT, page(data).encode())
    for name, specification in heat_maps(data):
        store.write(name, vl_convert.vegalite_to_png(specification, ppi=SCREEN))
    return Written(f"{data.location}/{REPORT}", warnings(data))


def sections(data: ReportData) -> list[Section]:
    """What there is to say, in the order of the page."""
    every = [
        findings.section(data),
        study.what_was_run(data),
        components.section(data),
        effects.section(data),
        circuit.section(data),
        circuit.neurons(data),
        components.agreement(data),
        prompts.section(data),
        study.how_computed(data),
        study.words(),
    ]
    return [section for section in every if section is not None]


def page(data: ReportData) -> str:
    """The whole file."""
    found = sections(data)
    groups = {group.id: group.title for group in data.groups}
    environment = Environment(loader=PackageLoader("gbcd.report", "."), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html.j2").render(
        title=study.title(data),
        facts=_facts(data),
        warnings=warnings(data),
        sections=found,
        controls=[Control(GROUP, "Task and wrong answer", groups), Control(FIND, "Find a component")] if groups else [],
        libraries=_libraries(),
        style=Markup(style_variables()) + _asset("page.css"),
        script=_asset("page.js"),
        data=_packed(found),
    )


def write_figures(out: str, folder: Path) -> list[Path]:
    """Draw every chart of a study into `folder`, at 300 dots per inch, once for each task and wrong answer.

    Raises:
        BadInput: there is no study in `out`, or it was not reduced.
    """
    data = read_data(out)
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for name, specification in _figures(data):
        path = folder / name
        path.write_bytes(vl_convert.vegalite_to_png(specification, ppi=PAPER))
        written.append(path)
    return written


def heat_maps(data: ReportData) -> Iterator[tuple[str, dict[str, Any]]]:
    """Heads and MLPs by the score that ranks, by name of the file; also of what has no room on the page."""
    if not data.ranked:
        return
    chart = components.heat_map(data.ranked, [components.NODE])
    for group in data.ranked:
        values = {"statistic": group.score_name, "level": components.NODE, "scale": "all"}
        figure = _figure(chart, key(group.id, components.NODE), values)
        title = f"{group.title}: {label(group.score_name)}"
        yield file_name(chart.name, *group.key, suffix="png"), figure | {"title": title}


def _facts(data: ReportData) -> list[str]:
    """The size of the model and of the study."""
    facts = [f"{name}: {said}" for name, said in data.computed if name == "prompts"]
    if not data.groups:
        return facts
    names = data.groups[0].nodes["component"]
    kinds = {"head": r"\.h", "MLP": "^m"}
    counts = {kind: int(names.str.contains(pattern).sum()) for kind, pattern in kinds.items()}
    shown = ", ".join(counted(count, kind) for kind, count in counts.items() if count)
    return [f"{shown} in {data.groups[0].nodes['layer'].n_unique()} layers", *facts]


def _packed(found: list[Section]) -> str:
    controls = [control for section in found for control in section.controls]
    charts = [chart for section in found for chart in section.charts]
    content: dict[str, Any] = {
        "dataset": DATA,
        "themes": {"light": theme(LIGHT), "dark": theme(DARK)},
        "labels": {control.name: control.by_group for control in controls if control.by_group},
        "charts": {chart.name: _described(chart) for chart in charts},
        "grids": {
            grid.name: {**grid.rows.packed(), "shown": grid.shown} for section in found for grid in section.grids
        },
    }
    text = json.dumps(content, allow_nan=False, separators=(",", ":"), default=dict)
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _described(chart: Chart) -> dict[str, Any]:
    return {
        **chart.rows.packed(),
        "specification": chart.specification({}),
        "parameters": chart.parameters,
        "rowHeight": chart.row_height and chart.row_height._asdict(),
    }


def _figures(data: ReportData) -> Iterator[tuple[str, dict[str, Any]]]:
    for section in sections(data):
        for group in data.groups:
            options = {control.name: control.by_group.get(group.id, control.options) for control in section.controls}
            values = {GROUP: group.id} | {name: next(iter(found), "") for name, found in options.items()}
            for chart in section.charts:
                table = key(*(values[name] for name in chart.rows.controls))
                if table in chart.rows.tables and chart.rows.tables[table].height:
                    yield file_name(chart.name, *group.key, suffix="png"), _figure(chart, table, values)


def _figure(chart: Chart, table: str, values: dict[str, str]) -> dict[str, Any]:
    rows = chart.rows.tables[table]
    specification = chart.specification(values) | {"width": min(FIGURE_WIDTH, chart.max_width or FIGURE_WIDTH)}
    if chart.row_height is not None:
        specification["height"] = chart.row_height.pixels * rows[chart.row_height.column].n_unique()
    look = theme(LIGHT, FONT) | {"padding": MARGIN}
    return specification | {"datasets": {DATA: rows.to_dicts()}, "config": look}


@cache
def _libraries() -> Markup:
    """Vega, Vega-Lite and Vega-Embed as one script, from the package that also draws the figures."""
    script = vl_convert.javascript_bundle()  # pyright: ignore[reportCallIssue]  (the stub lacks the default)
    return Markup(script.replace("</script", "<\\/script"))


def _asset(name: str) -> Markup:
    """A file of the page, which is ours and no text of a prompt."""
    return Markup(resources.files("gbcd.report").joinpath(name).read_text(encoding="utf-8"))
