"""A whole run: plan or resume, bring up workers, drive them until nothing is left, reduce.

study -> plan.json -> shards -> commits -> summary.parquet

A study of several models is that several times over, model by model.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import NamedTuple

import polars as pl
import torch
from rich.console import Console

from gbcd.analysis.ranking import check_score
from gbcd.analysis.reduce import reduce
from gbcd.printing import counted
from gbcd.run.commits import committed_ids, read_commits
from gbcd.run.executor import Workers, absolute, execute
from gbcd.run.given_up import GivenUp, given_up
from gbcd.run.norms_work import EngineBuilder, NormsWork, build_engine, stages
from gbcd.run.own_definitions import with_definitions
from gbcd.run.parts import Part
from gbcd.run.planning import Planned, open_plans
from gbcd.run.progress import ProgressDisplay
from gbcd.run.results import failed_prompts
from gbcd.run.shards import Plan
from gbcd.study import Study


class Run(NamedTuple):
    """What a run came to, of the tasks of one model.

    Attributes:
        part: of the study.
        out: where its results lie.
        plan: what was planned.
        found: shards that were committed before this run began.
        missing: shards that are not committed at its end.
        given_up: shards that failed again and again, with the reason.
        failed: prompts of committed shards that have no values, with the reason.
        seconds: wall time, to its summary.
        summary: the reduction of what is committed; None if nothing is.
    """

    part: Part
    out: str
    plan: Plan
    found: int
    missing: tuple[int, ...]
    given_up: tuple[GivenUp, ...]
    failed: dict[str, str]
    seconds: float
    summary: pl.DataFrame | None


def run_study(
    study: Study, console: Console | None = None, build: EngineBuilder = build_engine, score: str | None = None
) -> tuple[Run, ...]:
    """Run a study, or what is left of it.

    Args:
        study: what to run.
        console: where progress is shown; without one, where this process prints.
        build: makes the engine that workers use.
        score: what components are ranked by, where enough prompts have it (`gbcd.analysis.ranking.SCORES`).

    Returns:
        What came of it, for each model.

    Raises:
        BadInput: the study cannot be run, or its folder holds another.
        Incomplete: workers or storage failed for good; the same call goes on.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the same call goes on.
    """
    started = time.monotonic()
    check_score(score)
    with interruptible():
        device = device_of(study)
        planned = open_plans(study, device)
        found = [committed_ids(one.store) for one in planned]
        runs: list[Run] = []
        # interruptible once more: Ray sets a handler of its own when it connects
        with _workplace(study), interruptible(), ProgressDisplay(console or Console()) as display:
            for one, before in zip(planned, found, strict=True):
                display.say(_announcement(one, len(before), len(planned)))
                builder = with_definitions(build, one.part.wrong_answers, one.own)
                work = partial(NormsWork, absolute(one.store.location), builder)
                execute(one.store.location, stages(one.plan), work, workers_of(study, device), display)
                runs.append(_concluded(one, len(before), score, started))
                started = time.monotonic()
        return tuple(runs)


def _announcement(planned: Planned, found: int, n_parts: int) -> str:
    n_shards = len(planned.plan.shards)
    how = (
        f"resuming, {found:,} of them committed before"
        if planned.resumed
        else f"planned, centred by {planned.plan.study.centering}"
    )
    model = f"{planned.part.model}: " if n_parts > 1 else ""
    announced = f"{model}{counted(planned.plan.n_prompts, 'prompt')} in {counted(n_shards, 'shard')}, {how}"
    return "\n".join([announced, *planned.shortfalls])


@contextmanager
def _workplace(study: Study) -> Generator[None]:
    """Ray, for as long as the study lasts: it takes seconds to start."""
    if not study.compute.workers:
        yield
        return
    from gbcd.run.ray_pool import connected

    with connected(study.compute.workers * study.compute.threads):
        yield


def workers_of(study: Study, device: str) -> Workers:
    """Who computes a study."""
    gpus = study.compute.gpus_per_worker if device.startswith("cuda") else 0.0
    return Workers(study.compute.workers, study.compute.threads, gpus)


def _concluded(planned: Planned, found: int, score: str | None, started: float) -> Run:
    part, store, plan = planned.part, planned.store, planned.plan
    done = committed_ids(store)
    return Run(
        part=part,
        out=store.location,
        plan=plan,
        found=found,
        missing=tuple(shard.id for shard in plan.shards if shard.id not in done),
        given_up=tuple(given_up(store)),
        failed=failed_prompts(store, read_commits(store)),
        summary=reduce(store.location, score) if done else None,
        seconds=time.monotonic() - started,
    )


def device_of(study: Study) -> str:
    """What `auto` means: a GPU where this machine, or the cluster that is joined, has one."""
    if study.compute.device != "auto":
        return study.compute.device
    if study.compute.workers and os.environ.get("RAY_ADDRESS"):
        from gbcd.run import ray_pool

        ray_pool.connect(0)
        return "cuda" if ray_pool.cluster_has_gpu() else "cpu"
    return "cuda" if torch.cuda.is_available() else "cpu"


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
