"""A whole run: plan or resume, bring up workers, drive them until nothing is left, reduce.

study -> plan.json -> shards -> commits -> summary.parquet
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType

import polars as pl
import torch
from rich.console import Console

from gbcd.analysis.ranking import check_score
from gbcd.analysis.reduce import reduce
from gbcd.printing import counted
from gbcd.run.commits import committed_ids
from gbcd.run.executor import Team, absolute, execute
from gbcd.run.norms_work import NormsWork, stages
from gbcd.run.planning import Planned, open_plan
from gbcd.run.progress import ProgressDisplay
from gbcd.run.slices import WHOLE, Slice
from gbcd.run.status import FolderStatus, folder_status
from gbcd.run.work import Workers
from gbcd.study import Study


@dataclass(frozen=True)
class Run(FolderStatus):
    """The result of a run: the status of its folder at its end, and what this run did.

    Attributes:
        found: shards that were committed before it began.
        part: what of the study was computed here.
        seconds: wall time, to its summary.
        summary: the reduction of what is committed; None if nothing is, or while other parts are at work.
    """

    found: int
    part: Slice
    seconds: float
    summary: pl.DataFrame | None

    @property
    def missing(self) -> tuple[int, ...]:
        """Shards of this part that are not committed."""
        return tuple(shard for shard in self.left if self.part.has(shard))

    @property
    def left_to_others(self) -> tuple[int, ...]:
        """Shards of other parts that are not."""
        return tuple(shard for shard in self.left if not self.part.has(shard))


def run_study(
    study: Study,
    console: Console | None = None,
    kind: type[NormsWork] = NormsWork,
    score: str | None = None,
    part: Slice = WHOLE,
) -> Run:
    """Run a study, or what is left of it.

    Args:
        study: what to run.
        console: where progress is shown; without one, where this process prints.
        kind: what workers compute.
        score: what components are ranked by, where enough prompts have it (`gbcd.analysis.ranking.SCORES`).
        part: what of it is computed here; other processes compute the rest, at the same time or later.

    Raises:
        BadInput: the study cannot be run, or its folder holds another.
        Incomplete: workers or storage failed for good; the same call goes on.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the same call goes on.
    """
    started = time.monotonic()
    check_score(score, study.statistics)
    with interruptible(), ProgressDisplay(console or Console()) as display:
        display.say(f"Planning {study.out}: loading {study.model}, checking prompts")
        planned = open_plan(study, display.planning)
        torch.cuda.empty_cache()  # what the model took that planned is for workers on the same GPU
        found = len(committed_ids(planned.store))
        location, plan = planned.store.location, planned.plan
        display.say(_announcement(planned, found))
        work = partial(kind, absolute(location), planned.model, planned.definitions, study.compute.gpu_share)
        # interruptible once more: Ray sets a handler of its own when it connects
        with Team(location, work, workers_of(study, str(plan.study.compute.device))) as team, interruptible():
            execute(team, stages(plan), display, part)
        status = folder_status(location)
        is_over = bool(status.commits) and all(part.has(shard) for shard in status.left)
        summary = reduce(location, score) if is_over else None
        return Run(**vars(status), found=found, part=part, seconds=time.monotonic() - started, summary=summary)


def _announcement(planned: Planned, found: int) -> str:
    plan = planned.plan
    how = f"planned{' before' if planned.resumed else ''}, centred by {plan.centering}"
    if found:
        how = f"resuming, {found:,} of them committed before"
    said = f"{counted(plan.n_prompts, 'prompt')} in {counted(len(plan.shards), 'shard')}, {how}"
    return "\n".join([said, *planned.notes])


def workers_of(study: Study, device: str) -> Workers:
    """Who computes a study."""
    gpus = study.compute.gpus_per_worker if device.startswith("cuda") else 0.0
    return Workers(study.compute.workers, study.compute.threads, gpus)


@contextmanager
def interruptible() -> Generator[None]:
    """Let SIGTERM end a run as Ctrl-C does. Python delivers signals to the main thread only."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
