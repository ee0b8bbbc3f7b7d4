"""How far an evaluation is: a bar for the present step on a terminal, a line at its beginning where there is none."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from gbcd.evaluation.steps import Watch
from gbcd.printing import line


@contextmanager
def shown_steps(console: Console) -> Generator[Watch]:
    """What to tell of steps, one at a time; a step of which nothing is done yet may be of any length."""
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    bars: dict[str, TaskID] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:

        def show(step: str, done: int, total: int) -> None:
            if step not in bars:
                for earlier in bars.values():
                    progress.update(earlier, visible=False)
                if not console.is_terminal:
                    line(console, step)
                bars[step] = progress.add_task(step, total=None)
            progress.update(bars[step], completed=done, total=total if done else None)

        yield show
