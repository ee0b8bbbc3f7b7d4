"""How everything is said, by every command alike: facts with their label in a column, counts, durations, tables.

A line is never cut: in a narrow window it wraps. Colours and styles appear on a terminal only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

#: Characters of the column of labels.
LABEL = 13

#: Control characters, but for tab and newline, and what is printed instead.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))}

#: Failed prompts that are named.
MAX_FAILED = 5

#: Characters of the widest table.
WIDEST = 1000


class SafeConsole(Console):
    """A console on which the text of a prompt, a path or an error cannot move the cursor or change colours."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render, with control characters of the text written out."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=segment.text.translate(_CONTROLS))


def fact(console: Console, label: str, text: str) -> None:
    """Print one finding: its label in the left column, what there is to say beside it."""
    console.print(Text.assemble((f"{label:<{LABEL - 1}} ", "bold"), text), soft_wrap=True)


def failed_prompts(console: Console, failed: Mapping[str, str]) -> None:
    """Name the first prompts that have no values, and why."""
    for prompt, reason in list(failed.items())[:MAX_FAILED]:
        fact(console, "Failed", f"{prompt} has no values: {reason}")
    if len(failed) > MAX_FAILED:
        fact(console, "Failed", f"{counted(len(failed) - MAX_FAILED, 'more prompt')} (status failed in gbcd.prompts)")


def line(console: Console, text: str) -> None:
    """Print a line as it is, however narrow the window."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def heading(console: Console, text: str) -> None:
    """Print what the table below is of, set apart from what is above."""
    console.print(Text(f"\n{text}", "bold"), soft_wrap=True)


def table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[str]) -> None:
    """Print a table as wide as it is: in a narrow window its lines wrap, and no number is cut.

    Args:
        console: where to.
        columns: headings.
        rows: cells by row.
        words: the columns that are words; the others are numbers, and are aligned at the right.
    """
    grid = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for column in columns:
        grid.add_column(column, justify="left" if column in words else "right", no_wrap=True)
    for row in rows:
        grid.add_row(*(Text(cell.translate(_CONTROLS)) for cell in row))
    wide = console.options.update(width=WIDEST)
    natural = Measurement.get(console, wide, grid).maximum
    console.print(Segments(console.render(grid, wide.update(width=natural))), crop=False, end="")


def number(value: float | None, sign: str = "") -> str:
    """Three significant digits, as `1.10`, `-0.720`, `123`; `-` where there is none. `sign="+"` writes a plus too."""
    return "-" if value is None or value != value else f"{value:{sign}#.3g}".removesuffix(".")


def counted(number: int, noun: str) -> str:
    """A count with its noun: `1 shard`, `2,000 prompts`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds as people write them: `8 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
