"""What the page is made of: charts, controls, tables, sections.

A chart never holds rows. It names the controls that it follows, and its tables are found by their values, joined by
`|`; the page swaps rows when a control moves, and writes the same rows out as a table of numbers, so that nothing is
told by colour or position alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import altair as alt
import polars as pl
import polars.selectors as cs

#: Name of the data set of every chart.
DATA = "table"

#: Digits that are kept of a number; intervals are wider than the rest.
DIGITS = 4

#: Colours that colour-blind eyes tell apart, on white and on black (Okabe and Ito 2008); shapes say the same.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"]

KINDS = ["attention", "MLP"]

#: Scale of what has an order, light for much.
SCHEME = "cividis"

#: The control that chooses task and wrong answer; it is at the top of the page.
GROUP = "group"


class Control(NamedTuple):
    """A choice that charts follow.

    Attributes:
        name: as charts refer to it.
        label: as people read it.
        options: what is shown, by value; the first is chosen.
        by_group: for options that are called something else in each group.
    """

    name: str
    label: str
    options: dict[str, str]
    by_group: dict[str, dict[str, str]] | None = None


class Chart(NamedTuple):
    """A picture.

    Attributes:
        name: unique on the page; the name of its file.
        caption: what it shows and how to read it.
        picture: the specification; its data set is `DATA`.
        tables: rows by setting of the controls.
        controls: whose values, in this order, choose the table.
        columns: headings of the table of numbers, by column; other columns are not listed in it.
    """

    name: str
    caption: str
    picture: alt.Chart | alt.LayerChart
    tables: dict[str, pl.DataFrame]
    controls: tuple[str, ...]
    columns: dict[str, str]

    def specification(self) -> dict[str, Any]:
        """The picture as Vega-Lite, as wide as its place on the page, with an empty data set."""
        specification = self.picture.properties(width="container").to_dict()
        autosize = {"type": "fit-x", "contains": "padding"}
        return {**specification, "autosize": autosize, "description": self.caption, "config": {}}

    def rows(self, key: str) -> dict[str, list[Any]]:
        """One table by column, numbers rounded."""
        return rounded(self.tables[key]).to_dict(as_series=False)


class Table(NamedTuple):
    """A table of text, by row; the first cell of a row names it."""

    caption: str
    header: tuple[str, ...]
    rows: Sequence[Sequence[str]]


class Section(NamedTuple):
    """A part of the page; `text` is plain, `tables_by_group` are shown with their group."""

    id: str
    title: str
    text: str
    controls: tuple[Control, ...] = ()
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    tables_by_group: Mapping[str, Table] = MappingProxyType({})


def data() -> alt.NamedData:
    """The data set that the page fills."""
    return alt.NamedData(name=DATA)


def layered(height: int | alt.Step, *layers: alt.Chart) -> alt.LayerChart:
    """Layers over one another, in one frame."""
    return cast(alt.LayerChart, alt.layer(*layers)).properties(height=height)


def kind() -> pl.Expr:
    """One of `KINDS`, by the name of the component: `a3.h5` and `a3.g1` are attention, `m3` is an MLP."""
    return pl.when(pl.col("component").str.starts_with("m")).then(pl.lit(KINDS[1])).otherwise(pl.lit(KINDS[0]))


def by_kind(picture: alt.Chart) -> alt.Chart:
    """Tell attention from MLPs by colour and by shape."""
    legend = alt.Legend(orient="bottom")
    return picture.encode(
        color=alt.Color("kind:N", title=None, legend=legend, scale=alt.Scale(domain=KINDS, range=COLOURS[:2])),
        shape=alt.Shape("kind:N", title=None, legend=legend, scale=alt.Scale(domain=KINDS, range=SHAPES[:2])),
    )


def rounded(table: pl.DataFrame) -> pl.DataFrame:
    """Numbers to `DIGITS` digits, what is not a number as null."""
    return table.with_columns(cs.float().fill_nan(None).round_sig_figs(DIGITS))


def key(*values: object) -> str:
    """Name of a table by the values of the controls."""
    return "|".join(map(str, values))


def plain(number: float | None) -> str:
    """A number as text."""
    return "-" if number is None or number != number else f"{number:,.{DIGITS}g}"
