"""How far a run is: a bar on a terminal, a plain line every so often where there is none (the log of a job)."""

from __future__ import annotations

import time
from types import TracebackType
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn

from gbcd.printing import duration, line

#: Seconds between plain lines.
PLAIN_INTERVAL = 10.0


class Standing(NamedTuple):
    """Where a run stands."""

    shards_done: int
    shards: int
    prompts_done: int
    prompts: int
    retries: int
    quarantined: int
    workers_ready: int
    workers: int


class Done(NamedTuple):
    """What is done of something, and how much there is."""

    shards_done: int
    shards: int
    prompts_done: int
    prompts: int


class ProgressDisplay:
    """Shows a run's standing. A context manager; call `show` as often as you like."""

    def __init__(self, console: Console) -> None:
        """Prepare; the time that rates are taken over starts at the first `show`."""
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            MofNCompleteColumn(),
            TextColumn("prompts  {task.fields[detail]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._bar_task = self._bar.add_task("Computing", total=None, detail="")
        self._beside = Done(0, 0, 0, 0)
        self._first: tuple[float, int] | None = None
        self._last_line = -PLAIN_INTERVAL

    def __enter__(self) -> ProgressDisplay:
        """Start the bar."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        self._bar.stop()

    def say(self, message: str) -> None:
        """Print a line that stays."""
        line(self._console, message)

    def beside(self, others: Done) -> None:
        """Count `others` too in what is shown from now on: a study's other models."""
        self._beside = others

    def show(self, standing: Standing) -> None:
        """Bring the display up to date."""
        summed = {name: getattr(standing, name) + count for name, count in self._beside._asdict().items()}
        standing = standing._replace(**summed)
        now = time.monotonic()
        if self._first is None:
            self._first = (now, standing.prompts_done)
        detail = describe(standing, now - self._first[0], standing.prompts_done - self._first[1])
        self._bar.update(self._bar_task, completed=standing.prompts_done, total=standing.prompts, detail=detail)
        finished = standing.prompts_done == standing.prompts
        if not self._console.is_terminal and (finished or now - self._last_line >= PLAIN_INTERVAL):
            self._last_line = now
            self.say(f"{standing.prompts_done:,} of {standing.prompts:,} prompts, {detail}")


def describe(standing: Standing, seconds: float, computed: int) -> str:
    """The standing in words.

    Args:
        standing: where the run stands.
        seconds: since the run's first shard was given out.
        computed: prompts done since then; what was found done is not counted in the rate.
    """
    parts = [f"{standing.shards_done:,}/{standing.shards:,} shards"]
    rate = computed / seconds if seconds > 0 else 0.0
    if rate > 0:
        left = (standing.prompts - standing.prompts_done) / rate
        parts.append(f"{rate:,.0f} prompts/s")
        if left:
            parts.append(f"{duration(left)} left")
    parts.append(f"{standing.workers_ready}/{standing.workers} workers")
    if standing.retries:
        parts.append(f"{standing.retries} retr{'y' if standing.retries == 1 else 'ies'}")
    if standing.quarantined:
        parts.append(f"{standing.quarantined} quarantined")
    return ", ".join(parts)
