"""A whole run: plan or resume, bring up workers, drive them until nothing is left, reduce.

study -> plan.json -> shards -> commits -> summary.parquet
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import NamedTuple

import polars as pl
from rich.console import Console

from gbcd.analysis.ranking import check_score
from gbcd.analysis.reduce import reduce
from gbcd.printing import counted
from gbcd.run.commits import GivenUp, committed_ids, read_commits, read_given_up
from gbcd.run.executor import Team, absolute, execute
from gbcd.run.norms_work import NormsWork, stages
from gbcd.run.planning import Planned, open_plan
from gbcd.run.progress import ProgressDisplay
from gbcd.run.results import failed_prompts
from gbcd.run.shards import Plan
from gbcd.run.slices import WHOLE, Slice
from gbcd.run.work import Workers
from gbcd.study import Study


class Run(NamedTuple):
    """The result of a run.

    Attributes:
        out: where its results lie.
        plan: what was planned.
        found: shards that were committed before this run began.
        part: what of it was computed here.
        missing: shards of this part that are not committed at its end.
        left_to_others: shards of other parts that are not.
        given_up: shards that failed again and again, with the reason.
        failed: prompts of committed shards that have no values, with the reason.
        seconds: wall time, to its summary.
        summary: the reduction of what is committed; None if nothing is, or while other parts are at work.
    """

    out: str
    plan: Plan
    found: int
    part: Slice
    missing: tuple[int, ...]
    left_to_others: tuple[int, ...]
    given_up: tuple[GivenUp, ...]
    failed: dict[str, str]
    seconds: float
    summary: pl.DataFrame | None


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
        found = len(committed_ids(planned.store))
        location, plan = planned.store.location, planned.plan
        display.say(_announcement(planned, found))
        work = partial(kind, absolute(location), planned.model, planned.definitions)
        # interruptible once more: Ray sets a handler of its own when it connects
        with Team(location, work, workers_of(study, str(plan.study.compute.device))) as team, interruptible():
            execute(team, stages(plan), display, part)
        return _concluded(planned, found, score, part, started)


def _announcement(planned: Planned, found: int) -> str:
    plan = planned.plan
    how = f"planned, centred by {plan.centering}"
    if planned.resumed:
        how = f"resuming, {found:,} of them committed before"
    said = f"{counted(plan.n_prompts, 'prompt')} in {counted(len(plan.shards), 'shard')}, {how}"
    return "\n".join([said, *planned.notes])


def workers_of(study: Study, device: str) -> Workers:
    """Who computes a study."""
    gpus = study.compute.gpus_per_worker if device.startswith("cuda") else 0.0
    return Workers(study.compute.workers, study.compute.threads, gpus)


def _concluded(planned: Planned, found: int, score: str | None, part: Slice, started: float) -> Run:
    store, plan = planned.store, planned.plan
    done = committed_ids(store)
    left = [shard.id for shard in plan.shards if shard.id not in done]
    others = tuple(shard for shard in left if not part.has(shard))
    return Run(
        out=store.location,
        plan=plan,
        found=found,
        part=part,
        missing=tuple(shard for shard in left if part.has(shard)),
        left_to_others=others,
        given_up=tuple(read_given_up(store)),
        failed=failed_prompts(store, read_commits(store)),
        summary=reduce(store.location, score) if done and not others else None,
        seconds=time.monotonic() - started,
    )


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
