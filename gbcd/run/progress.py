"""How far a run is: a bar on a terminal, a plain line now and then where there is none (the log of a job)."""

from __future__ import annotations

import time
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar

from gbcd.printing import duration, line

#: Seconds between plain lines in the first minute, and after it.
PLAIN_INTERVAL, LATER_INTERVAL = 10.0, 60.0


class Progress(NamedTuple):
    """How far a stage is. Sizes (`done`, `total`) are counted in `noun`s and include shards that are under way."""

    title: str
    noun: str
    shards_done: int
    shards: int
    done: int
    total: int
    n_workers: int
    workers_ready: int = 0
    retries: int = 0
    given_up: int = 0


class ProgressDisplay:
    """Shows progress. A context manager; call `show` as often as you like."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[noun]}s  {task.fields[detail]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._bar_task = self._bar.add_task("", total=None, visible=False, noun="", detail="")
        self._now: Progress | None = None
        self._began = (0.0, 0)
        self._said: Progress | None = None
        self._said_at = self._said_first_at = 0.0

    def __enter__(self) -> ProgressDisplay:
        self._bar.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._bar.stop()

    def say(self, message: str) -> None:
        """Print a line that stays."""
        line(self._console, message)

    def planning(self, task: str, n_prompts: int, done: int) -> None:
        """Show how many of a task's prompts are checked, unless all are at once."""
        if self._now is None and done == n_prompts:
            return
        self.show(Progress(f"Planning {task}", "prompt", 0, 0, done, n_prompts, n_workers=0, workers_ready=1))

    def show(self, progress: Progress) -> None:
        """Bring the display up to date."""
        now = time.monotonic()
        if self._now is None or self._now.title != progress.title or not self._now.workers_ready:
            self._began = (now, progress.done)  # rates count from the moment at which a worker is ready
        self._now = progress
        detail = describe(progress, now - self._began[0], progress.done - self._began[1])
        self._bar.update(
            self._bar_task,
            description=progress.title,
            visible=True,
            completed=progress.done,
            total=progress.total,
            noun=progress.noun,
            detail=detail,
        )
        if not self._console.is_terminal and self._is_news(progress, now):
            self._said, self._said_at = progress, now
            said = f"{progress.title}: {progress.done:,} of {progress.total:,} {progress.noun}s"
            self.say(f"{said}, {detail}" if detail else said)

    def _is_news(self, progress: Progress, now: float) -> bool:
        """Whether a log gets another line: at the beginning, the first progress and the end, and every so often.

        The end is when all shards are committed, not when the last is computed.
        """
        before = self._said
        if before is None or before.title != progress.title:
            self._said_first_at = now
            return True
        if before == progress:
            return False
        if before.done == 0 < progress.done or before.shards_done < progress.shards_done == progress.shards:
            return True
        is_early = now - self._said_first_at < LATER_INTERVAL
        return now - self._said_at >= (PLAIN_INTERVAL if is_early else LATER_INTERVAL)


def describe(progress: Progress, seconds: float, computed: int) -> str:
    """Speed, time left and what else there is to know.

    Args:
        progress: how far the stage is.
        seconds: since a worker was ready.
        computed: what was done since then; what was found done is not counted in the rate.
    """
    parts = [f"{progress.shards_done:,}/{progress.shards:,} shards"] if progress.shards else []
    rate = computed / seconds if seconds > 0 else 0.0
    if rate > 0:
        parts.append(f"{rate:,.0f} {progress.noun}s/s" if rate >= 10 else f"{rate:.2g} {progress.noun}s/s")
        if progress.done < progress.total:
            parts.append(f"{duration((progress.total - progress.done) / rate)} left")
    if progress.n_workers:
        starting = progress.n_workers - progress.workers_ready
        ready = f"{progress.workers_ready}/{progress.n_workers} workers"
        parts.append(f"{ready} ready" if starting else ready)
    if progress.retries:
        parts.append(f"{progress.retries} retr{'y' if progress.retries == 1 else 'ies'}")
    if progress.given_up:
        parts.append(f"{progress.given_up} given up")
    return ", ".join(parts)
