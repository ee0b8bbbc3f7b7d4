"""How far an evaluation is: a bar for the present step on a terminal, a line at its beginning where there is none."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from gbcd.printing import line


class StepDisplay:
    """Shows one step at a time. A context manager; call `show` as often as you like."""

    def __init__(self, console: Console) -> None:
        """Show nothing yet."""
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._step = ""
        self._bar: TaskID | None = None

    def __enter__(self) -> StepDisplay:
        """Start the bar."""
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        self._bars.stop()

    def show(self, step: str, done: int, total: int) -> None:
        """Bring the display up to date; a step of which nothing is done yet may be of any length."""
        if step != self._step or self._bar is None:
            self._begin(step)
        if self._bar is not None:
            self._bars.update(self._bar, completed=done, total=total if done else None)

    def _begin(self, step: str) -> None:
        self._step = step
        if not self._console.is_terminal:
            line(self._console, step)
        if self._bar is not None:
            self._bars.remove_task(self._bar)
        self._bar = self._bars.add_task(step, total=None)
