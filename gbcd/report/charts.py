"""What the page is made of, and how it looks: charts, tables, controls, sections; a palette for light and for dark.

A chart never holds rows. It names the controls that choose its table, and those that it reads as parameters; the page
swaps rows or sets parameters when a control moves, and lists the same rows as a table, so that nothing is told by
colour or position alone. The series are the colours of Okabe and Ito (2008), which colour-blind eyes tell apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import altair as alt
import polars as pl
import polars.selectors as cs

from gbcd.report.data import KINDS, ends

#: Name of the data set of every chart, which the page fills, and what every chart begins with.
DATA = "table"
BASE = alt.Chart(alt.NamedData(name=DATA))

#: Controls at the top of the page: what is shown, and the component that is looked for.
GROUP, FIND = "group", "find"

#: Shapes that tell kinds of components apart beside colours.
SHAPES = ["circle", "square"]

#: Significant digits of the numbers in the file, more than are shown, so that what is shown is rounded once.
DIGITS = 7

#: Style of text on a strong colour, which has the colour of the paper.
INSIDE = "inside"

#: Colour of what marks the component that is looked for, and the test for it.
RING = "#009e73"
IS_FOUND = f"{FIND} !== '' && indexof(lower(datum.component), lower({FIND})) === 0"


class Control(NamedTuple):
    """A choice that charts follow.

    Attributes:
        name: as charts refer to it.
        label: as people read it.
        options: labels by value; the first is chosen. Without any it is a field for text.
        by_group: for options that differ between groups.
    """

    name: str
    label: str
    options: Mapping[str, str] = MappingProxyType({})
    by_group: Mapping[str, Mapping[str, str]] = MappingProxyType({})


class Rows(NamedTuple):
    """Data of a chart or grid.

    Attributes:
        tables: by the values of `controls`, joined by `|`.
        columns: what is listed, by heading; a column may have the ends of its interval beside it (`data.ends`).
        controls: what chooses the table.
    """

    tables: dict[str, pl.DataFrame]
    columns: Mapping[str, str]
    controls: tuple[str, ...] = (GROUP,)

    def packed(self) -> dict[str, Any]:
        """As the page reads it: tables by column, numbers rounded, what is not a number as null."""
        finite = cs.float().fill_nan(None).replace([float("inf"), float("-inf")], None).round_sig_figs(DIGITS)
        tables = {name: table.with_columns(finite) for name, table in self.tables.items()}
        there = {column for table in self.tables.values() for column in table.columns}
        return {
            "tables": {name: table.to_dict(as_series=False) for name, table in tables.items()},
            "columns": [[title, of, *(end for end in ends(of) if end in there)] for title, of in self.columns.items()],
            "controls": self.controls,
        }


class RowHeight(NamedTuple):
    """The height of a picture that has a row for each different value of `column`, `pixels` high."""

    column: str
    pixels: int


class Chart(NamedTuple):
    """A picture.

    Attributes:
        name: unique on the page; the name of its file.
        caption: what it shows and how to read it.
        picture: the specification; its data set is `DATA`.
        rows: its data.
        parameters: controls that the picture reads as parameters of that name.
        row_height: for pictures that grow with their table.
        max_width: in pixels, beyond which the picture would only get emptier.
        is_half: stands beside its neighbour where there is room.
    """

    name: str
    caption: str
    picture: alt.Chart | alt.LayerChart
    rows: Rows
    parameters: tuple[str, ...] = ()
    row_height: RowHeight | None = None
    max_width: int | None = None
    is_half: bool = False

    def specification(self, values: Mapping[str, str]) -> dict[str, Any]:
        """Vega-Lite without data, as wide as its place; `values` are those of the parameters when it is opened."""
        specification = self.picture.properties(width="container").to_dict()
        if self.row_height is not None:
            specification["height"] = self.row_height.pixels
        parameters = [{"name": name, "value": values.get(name, "")} for name in self.parameters]
        return {
            **specification,
            "params": [*specification.get("params", []), *parameters],
            "autosize": {"type": "fit-x", "contains": "padding"},
            "description": self.caption,
            "config": {},
        }


class Grid(NamedTuple):
    """A table of numbers that can be sorted and, where it has a column `component`, searched.

    Attributes:
        name: unique on the page.
        caption: what its columns are.
        rows: its data.
        shown: rows that are listed until all are asked for.
        caveats: a sentence more, of the groups that need one.
    """

    name: str
    caption: str
    rows: Rows
    shown: int
    caveats: Mapping[str, str] = MappingProxyType({})


class Table(NamedTuple):
    """A table of text, by row; the first cell of a row names it."""

    header: tuple[str, ...]
    rows: Sequence[Sequence[str]]


class Section(NamedTuple):
    """A part of the page: sentences for all, and by group; then its controls, charts, grids and tables."""

    id: str
    title: str
    text: str
    text_by_group: Mapping[str, Sequence[str]] = MappingProxyType({})
    controls: tuple[Control, ...] = ()
    charts: tuple[Chart, ...] = ()
    grids: tuple[Grid, ...] = ()
    tables: tuple[Table, ...] = ()
    tables_by_group: Mapping[str, Table] = MappingProxyType({})


class Palette(NamedTuple):
    """Colours of the page and its charts: behind text, text, text beside it, rules, warnings, links, focus, series."""

    paper: str
    panel: str
    ink: str
    quiet: str
    line: str
    warn: str
    link: str
    accent: str
    series: tuple[str, ...]


LIGHT = Palette(
    *("#ffffff", "#f4f5f7", "#1b1d21", "#565b63", "#d9dce1", "#fff4d6", "#00558c", "#d55e00"),
    ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
)
DARK = Palette(
    *("#15171a", "#20242a", "#e9eaec", "#a9afb8", "#363b42", "#3a3115", "#7cc4f5", "#ff9a55"),
    ("#4aa8e0", "#f58a4b", "#35c79b", "#e3a3c6", "#f0b93a", "#a5daf7"),
)


def style_variables() -> str:
    """The palettes as variables of a style sheet: the dark one where the reader prefers the dark."""
    light, dark = (
        "".join(f"--{name}:{value};" for name, value in palette._asdict().items() if isinstance(value, str))
        for palette in (LIGHT, DARK)
    )
    return f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"


def theme(palette: Palette, font: str | None = None) -> dict[str, Any]:
    """Configuration of Vega-Lite; without `font` the page gives its own."""
    text = {"labelColor": palette.ink, "titleColor": palette.quiet, "labelFontSize": 11, "titleFontSize": 11}
    quiet_axis = {"titleFontWeight": "normal", "titlePadding": 10, "labelPadding": 6, "labelSeparation": 8}
    return {
        "background": palette.paper,
        "padding": {"left": 2, "right": 14, "top": 6, "bottom": 4},
        "view": {"stroke": None},
        "range": {
            "category": list(palette.series),
            "diverging": [palette.series[1], palette.panel, palette.series[0]],
        },
        "axis": {**text, **quiet_axis, "ticks": False, "domain": False, "gridColor": palette.line},
        "axisXQuantitative": {"labelFlush": False, "tickCount": {"expr": "max(2, floor(width / 90))"}},
        "legend": {**text, "titleFontWeight": "normal", "labelFontSize": 12, "symbolSize": 90, "offset": 14},
        "text": {"color": palette.ink, "fontSize": 11},
        "bar": {"color": palette.series[0]},
        "rule": {"color": palette.quiet},
        "tick": {"color": palette.accent},
        "style": {INSIDE: {"color": palette.paper, "fill": palette.paper}},
    } | ({} if font is None else {"font": font})


def layered(*layers: alt.Chart, height: int | None = None) -> alt.LayerChart:
    """Layers over one another, in one frame; without `height` the chart must have a `RowHeight`."""
    joined = cast(alt.LayerChart, alt.layer(*layers))
    return joined if height is None else joined.properties(height=height)


def bound(end: str, value: str) -> str:
    """One end of an interval, or the value where there is no interval: Vega warns of a column without any number."""
    return f"isValid(datum.{end}) ? datum.{end} : datum.{value}"


def ring(picture: alt.Chart, size: int) -> alt.Chart:
    """A ring of `size` around the component that is looked for."""
    return picture.mark_point(size=size, strokeWidth=2.5, color=RING).encode(opacity=_only(IS_FOUND))


def frame(picture: alt.Chart) -> alt.Chart:
    """A frame around the cell of the component that is looked for."""
    return picture.mark_rect(fill=None, stroke=RING, strokeWidth=2.5).encode(opacity=_only(IS_FOUND))


def _only(test: str) -> Any:
    return alt.when(test).then(alt.value(1)).otherwise(alt.value(0))


def by_kind(picture: alt.Chart, has_legend: bool = True) -> alt.Chart:
    """Tell attention from MLPs by colour and by shape."""
    legend = alt.Legend(orient="bottom") if has_legend else None
    return picture.encode(
        color=alt.Color("kind:N", title=None, legend=legend, scale=alt.Scale(domain=KINDS)),
        shape=alt.Shape("kind:N", title=None, legend=legend, scale=alt.Scale(domain=KINDS, range=SHAPES)),
    )


def key(*values: object) -> str:
    """Name of a table by the values of its controls."""
    return "|".join(map(str, values))
