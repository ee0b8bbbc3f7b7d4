"""A whole run: plan or resume, bring up workers, drive them until nothing is left, reduce.

study -> plan.json -> shards -> commits -> summary.parquet
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import polars as pl
import torch
from rich.console import Console

from gbcd.errors import Incomplete
from gbcd.job.commits import Quarantine, committed_ids
from gbcd.job.driver import Driver, Pool
from gbcd.job.planning import open_plan
from gbcd.job.progress import ProgressDisplay
from gbcd.job.shards import Plan
from gbcd.job.store import StorageError, Store
from gbcd.job.study import Study
from gbcd.job.workers import EngineBuilder, LocalPool, build_engine
from gbcd.reduction.reduce import reduce


class Run(NamedTuple):
    """What a run came to.

    Attributes:
        plan: what was planned.
        found: shards that were committed before this run began.
        missing: shards that are not committed at its end.
        quarantined: those that were given up, with the reason.
        seconds: wall time, from planning to summary.
        summary: the reduction of what is committed; None if nothing is.
    """

    plan: Plan
    found: int
    missing: tuple[int, ...]
    quarantined: tuple[Quarantine, ...]
    seconds: float
    summary: pl.DataFrame | None


def run_study(study: Study, console: Console, build: EngineBuilder = build_engine) -> Run:
    """Run a study, or what is left of it.

    Args:
        study: what to run.
        console: where progress is shown.
        build: makes the engine that workers use.

    Raises:
        BadInput: the study cannot be run, or its folder holds another.
        Incomplete: workers or storage failed for good; the same call goes on.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the same call goes on.
    """
    started = time.monotonic()
    with interruptible():
        device = device_of(study)
        store, plan, resumed = open_plan(study, device)
        found = len(committed_ids(store))
        with ProgressDisplay(console) as display:
            how = f"resuming: {found:,} of {len(plan.shards):,} shards are committed" if resumed else "planned"
            display.say(f"{plan.n_prompts:,} prompts in {len(plan.shards):,} shards, {how}")
            quarantined = _drive(study, store, plan, device, display, build)
        return _concluded(store, plan, found, quarantined, started)


def _drive(
    study: Study, store: Store, plan: Plan, device: str, display: ProgressDisplay, build: EngineBuilder
) -> list[Quarantine]:
    pool = _pool(study, device, build)
    try:
        with interruptible():  # once more: Ray sets a handler of its own when it connects
            driver = Driver(store, plan, pool, max(1, study.compute.workers), display)
            driver.run()
    except StorageError as error:
        raise Incomplete(str(error)) from error
    finally:
        pool.close()
    return driver.quarantined


def _pool(study: Study, device: str, build: EngineBuilder) -> Pool:
    if not study.compute.workers:
        return LocalPool(study.out, build)
    from gbcd.job.ray_pool import RayPool

    out = study.out if "://" in study.out else str(Path(study.out).absolute())  # workers have a folder of their own
    return RayPool(out, study.compute.workers, study.compute.threads, device.startswith("cuda"), build)


def _concluded(store: Store, plan: Plan, found: int, quarantined: list[Quarantine], started: float) -> Run:
    done = committed_ids(store)
    return Run(
        plan=plan,
        found=found,
        missing=tuple(shard.id for shard in plan.shards if shard.id not in done),
        quarantined=tuple(quarantined),
        summary=reduce(store.location) if done else None,
        seconds=time.monotonic() - started,
    )


def device_of(study: Study) -> str:
    """What `auto` means: a GPU where this machine, or the cluster that is joined, has one."""
    if study.compute.device != "auto":
        return study.compute.device
    if study.compute.workers and os.environ.get("RAY_ADDRESS"):
        from gbcd.job import ray_pool

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
