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

from gbcd.report.theme import SHAPES

#: Name of the data set of every chart.
DATA = "table"

#: Digits that are kept of a number; intervals are wider than the rest.
DIGITS = 4

KINDS = ["attention", "MLP"]

#: Answers that are shown of a set.
ANSWERS = 3

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
        tables: rows by setting of the controls.
        controls: whose values, in this order, choose the table.
        columns: headings of the table of numbers, by column; other columns are not listed in it.
        row_height: for pictures that grow with their table.
        max_width: in pixels, beyond which the picture would only get emptier.
        is_half: stands beside its neighbour where there is room.
        is_of_task: shows the same for all wrong answers of a task.
    """

    name: str
    caption: str
    picture: alt.Chart | alt.LayerChart
    tables: dict[str, pl.DataFrame]
    controls: tuple[str, ...]
    columns: dict[str, str]
    row_height: RowHeight | None = None
    max_width: int | None = None
    is_half: bool = False
    is_of_task: bool = False

    def specification(self) -> dict[str, Any]:
        """The picture as Vega-Lite, as wide as its place on the page, without data; see `height`."""
        specification = self.picture.properties(width="container").to_dict()
        if self.row_height is not None:
            specification["height"] = self.row_height.pixels
        autosize = {"type": "fit-x", "contains": "padding"}
        return {**specification, "autosize": autosize, "description": self.caption, "config": {}}

    def height(self, name: str) -> int | None:
        """Of the picture of one table; None where all have the picture's own."""
        if self.row_height is None:
            return None
        return self.row_height.pixels * self.tables[name][self.row_height.column].n_unique()

    def rows(self, key: str) -> dict[str, list[Any]]:
        """One table by column, numbers rounded."""
        return rounded(self.tables[key]).to_dict(as_series=False)


class Tokens(NamedTuple):
    """A text as a model reads it."""

    tokens: tuple[str, ...]


class Table(NamedTuple):
    """A table of text, by row; the first cell of a row names it, cells of the columns `numbers` end at one line."""

    caption: str
    header: tuple[str, ...]
    rows: Sequence[Sequence[str | Tokens]]
    numbers: tuple[int, ...] = ()


class Section(NamedTuple):
    """A part of the page; `text` is plain; `text_by_group`, above it, and `tables_by_group` show with their group."""

    id: str
    title: str
    text: str
    controls: tuple[Control, ...] = ()
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    tables_by_group: Mapping[str, Table] = MappingProxyType({})
    text_by_group: Mapping[str, str] = MappingProxyType({})


def data() -> alt.NamedData:
    """The data set that the page fills."""
    return alt.NamedData(name=DATA)


def layered(*layers: alt.Chart, height: int | None = None) -> alt.LayerChart:
    """Layers over one another, in one frame; without `height` the chart must have a `RowHeight`."""
    joined = cast(alt.LayerChart, alt.layer(*layers))
    return joined if height is None else joined.properties(height=height)


def kind() -> pl.Expr:
    """One of `KINDS`, by the name of the component: `a3.h5` and `a3.g1` are attention, `m3` is an MLP."""
    return pl.when(pl.col("component").str.starts_with("m")).then(pl.lit(KINDS[1])).otherwise(pl.lit(KINDS[0]))


def by_kind(picture: alt.Chart) -> alt.Chart:
    """Tell attention from MLPs by colour and by shape."""
    legend = alt.Legend(orient="bottom")
    return picture.encode(
        color=alt.Color("kind:N", title=None, legend=legend, scale=alt.Scale(domain=KINDS)),
        shape=alt.Shape("kind:N", title=None, legend=legend, scale=alt.Scale(domain=KINDS, range=SHAPES[:2])),
    )


def rounded(table: pl.DataFrame) -> pl.DataFrame:
    """Numbers to `DIGITS` digits, what is not a number as null."""
    return table.with_columns(cs.float().fill_nan(None).round_sig_figs(DIGITS))


def answers(text: str) -> str:
    """An answer as the table of prompts has it, `a|b|c` for a set; of a large set the first few."""
    few = text.split("|")
    return text if len(few) <= ANSWERS else f"{', '.join(few[:ANSWERS])} and {len(few) - ANSWERS} more"


def key(*values: object) -> str:
    """Name of a table by the values of the controls."""
    return "|".join(map(str, values))


def plain(number: float | None) -> str:
    """A number as text."""
    return "-" if number is None or number != number else f"{number:,.{DIGITS}g}"
