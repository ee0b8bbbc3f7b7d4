"""What a run costs beside the computation: planning, driving, committing, resuming, reducing, reading.

    python benchmarks/scale.py job --prompts 10000        # a whole run on Ray, beside the engine alone
    python benchmarks/scale.py store --prompts 100000     # all of it but the gradients, which are repeated
    python benchmarks/scale.py resume --prompts 10000 --shard-size 1   # ten thousand committed shards

`job` runs a study on two workers of one thread and holds its rate, from the first commit to the last, against two
processes that only compute. `store` computes 256 prompts once and lets the real driver commit their values, under the
identifiers of all prompts, through the real writer: what it measures is exact, but the norms repeat, so sizes are
measured by `layout.py` on computed ones. `resume` commits one shard's files for every shard. Each line of output is one
JSON object; memory is the process's peak, and the times of `store` and `resume` are processor seconds of all threads,
so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from typing import Any, TypeVar

import polars as pl
import pyarrow as pa
from rich.console import Console

from gbcd.analysis.reduce import reduce
from gbcd.engine.tables import ShardTables
from gbcd.pipeline import run_study
from gbcd.run.commits import Conditions, publish, read_commits
from gbcd.run.compaction import compact
from gbcd.run.driver import Driver
from gbcd.run.inputs import Inputs
from gbcd.run.planning import open_plans
from gbcd.run.progress import ProgressDisplay
from gbcd.run.results import read_components, scan, shard_tables
from gbcd.run.shard_files import Expected, ShardFiles, encode
from gbcd.run.shards import Plan, Shard, read_plan
from gbcd.run.standing import folder_standing
from gbcd.run.store import Store
from gbcd.run.verification import verify
from gbcd.run.workers import CALIBRATION_FILE, Committed, Job, Outcome, Worker
from gbcd.study import Compute, Study

QUIET = Console(file=io.StringIO())

T = TypeVar("T")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("what", choices=["job", "store", "resume"])
    arguments.add_argument("--prompts", type=int, required=True)
    arguments.add_argument("--shard-size", type=int, default=256)
    arguments.add_argument("--wrong-answer", action="append")
    arguments.add_argument("--folder", help="where to write; a temporary folder otherwise")
    asked = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        study = Study(
            tasks=("ioi",),
            prompts_per_task=asked.prompts,
            wrong_answers=tuple(asked.wrong_answer or ["inverse_logits"]),
            out=f"{folder}/out",
            compute=Compute(workers=2, device="cpu", shard_size=asked.shard_size),
        )
        found = job(study) if asked.what == "job" else {"store": store, "resume": resume}[asked.what](study, folder)
    print(json.dumps({"measured": asked.what, "prompts": asked.prompts, "shard_size": asked.shard_size} | found))


def job(study: Study) -> dict[str, Any]:
    """A whole run, then the engine alone on as many processes."""
    started = time.perf_counter()
    run_study(study, QUIET)
    seconds = time.perf_counter() - started
    commits = sorted(read_commits(Store(study.out)), key=lambda commit: commit.committed_at)
    first, last = commits[0].committed_at, commits[-1].committed_at
    rate = sum(commit.n_prompts for commit in commits[1:]) / (last - first).total_seconds()
    with multiprocessing.get_context("spawn").Pool(study.compute.workers) as processes:
        rates = processes.starmap(engine_rate, [(study.out, number) for number in range(study.compute.workers)])
    return {
        "seconds": round(seconds, 1),
        "prompts_per_second": round(rate, 1),
        "engine_alone_prompts_per_second": round(sum(rates), 1),
        "job_to_engine": round(rate / sum(rates), 3),
        "driver_peak_mb": peak_mb(),
    }


def engine_rate(out: str, number: int, seconds: float = 20.0) -> float:
    """Prompts per second of one process that computes shards and keeps nothing."""
    worker = Worker(out)
    worker.load()
    worker.prepare(Store(out).read(CALIBRATION_FILE))
    plan = read_plan(Store(out))
    inputs, done, started = Inputs(Store(out), plan), 0, 0.0
    turn = number
    while not started or time.perf_counter() - started < seconds:
        shard = plan.shards[turn % len(plan.shards)]
        worker._engine.compute(inputs.read(shard))  # pyright: ignore[reportPrivateUsage]
        done += shard.n_prompts if started else 0
        started = started or time.perf_counter()  # the first shard warms up
        turn += 2
    return done / (time.perf_counter() - started)


def store(study: Study, folder: str) -> dict[str, Any]:
    """Everything around the computation, at the size of `study`."""
    small = study.model_copy(update={"prompts_per_task": 256, "out": f"{folder}/computed"})
    small = small.model_copy(update={"compute": Compute(workers=0, device="cpu")})
    run_study(small, QUIET)
    (computed,) = shard_tables(Store(small.out))
    before = peak_mb()
    planning, ((planned, *_),) = timed(lambda: (open_plans(study, "cpu"),))
    after_planning = peak_mb()
    pool = RepeatingPool(study, planned.plan, computed)
    pool.start(None)
    driving, _ = timed(lambda: drive(planned.store, planned.plan, pool))
    after_driving = peak_mb()
    resuming, _ = timed(lambda: drive(planned.store, open_plans(study, "cpu")[0].plan, pool))
    found: dict[str, Any] = {
        "shards": len(planned.plan.shards),
        "plan_s": round(planning, 2),
        "plan_grows_mb": after_planning - before,
        "driver_ms_per_shard": round(1e3 * (driving - pool.seconds) / len(planned.plan.shards), 2),
        "commit_ms_per_shard": round(1e3 * pool.seconds / len(planned.plan.shards), 2),
        "driver_grows_mb": after_driving - after_planning,
        "resume_s": round(resuming, 2),
    }
    for state in ("small_files", "merged"):
        found[state] = reading(study.out)
        if state == "small_files":
            found["compact_s"] = round(timed(lambda: compact(study.out))[0], 2)
    return found | {"verify_s": round(timed(lambda: verify(study.out))[0], 2), "peak_mb": peak_mb()}


def resume(study: Study, folder: str) -> dict[str, Any]:
    """A run that finds everything committed, and `gbcd status` of it."""
    small = study.model_copy(update={"prompts_per_task": study.compute.shard_size, "out": f"{folder}/computed"})
    run_study(small.model_copy(update={"compute": Compute(workers=0, device="cpu")}), QUIET)
    (computed,) = shard_tables(Store(small.out))
    (planned,) = open_plans(study, "cpu")
    pool = RepeatingPool(study, planned.plan, computed)
    pool.start(None)
    files = pool.encoded(planned.plan.shards[0])
    for shard in planned.plan.shards:
        publish(planned.store, shard, files, pool.conditions, 0.0, 1)
    resuming, _ = timed(lambda: drive(planned.store, open_plans(study, "cpu")[0].plan, pool))
    return {
        "shards": len(planned.plan.shards),
        "resume_s": round(resuming, 2),
        "status_s": round(timed(lambda: folder_standing(study.out))[0], 2),
        "compact_s": round(timed(lambda: compact(study.out))[0], 2),
        "peak_mb": peak_mb(),
    }


def drive(store: Store, plan: Plan, pool: RepeatingPool) -> None:
    with ProgressDisplay(QUIET) as display:
        Driver(store, plan, pool, 1, display).run()


def reading(out: str) -> dict[str, float]:
    """Seconds of the reduction and of two queries, on what is committed."""
    mean = scan(out).group_by("component").agg(pl.col("grad_norm").mean())
    one = scan(out).filter(pl.col("component") == "a2.h3.q").select("prompt_id", "grad_norm")
    return {
        "reduce_s": round(timed(lambda: reduce(out))[0], 2),
        "mean_per_component_s": round(timed(lambda: mean.collect(engine="streaming"))[0], 2),
        "one_part_s": round(timed(lambda: one.collect(engine="streaming"))[0], 2),
    }


class RepeatingPool:
    """Commits the same values for every shard, under the identifiers of its prompts."""

    ready = 1

    def __init__(self, study: Study, plan: Plan, computed: ShardTables) -> None:
        self._store, self._plan, self._computed = Store(study.out), plan, computed
        self._worker = Worker(study.out)
        self._waiting: list[Job] = []
        self._started = False
        self.seconds = 0.0

    def start(self, calibration: bytes | None) -> None:
        if self._started:
            return
        self._started = True
        self._worker.load()
        settled = self._worker.prepare(calibration)
        self.conditions = Conditions(hashlib.sha256(settled).hexdigest(), self._plan.study.batch_size, {})
        self._inputs = Inputs(self._store, self._plan)
        self._n_components = len(read_components(self._store))

    def room(self) -> int:
        return 1 - len(self._waiting)

    def submit(self, job: Job) -> None:
        self._waiting.append(job)

    def wait(self, timeout: float) -> list[Outcome]:
        started = time.process_time()
        jobs, self._waiting = self._waiting, []
        for one in jobs:
            self._commit(one)
        self.seconds += time.process_time() - started
        return [Committed(one) for one in jobs]

    def close(self) -> None:
        return

    def _commit(self, one: Job) -> None:
        shard = self._plan.shards[one.shard]
        publish(self._store, shard, self.encoded(shard), self.conditions, 0.0, one.attempt)

    def encoded(self, shard: Shard) -> ShardFiles:
        ids, definitions = self._inputs.ids(shard), self._plan.study.wrong_answers
        tables = ShardTables(
            renamed(self._computed.prompts, ids, len(definitions)),
            renamed(self._computed.norms, ids, len(definitions)),
            self._computed.coherence,
        )
        return encode(shard, tables, Expected(ids, definitions, self._n_components))


def renamed(table: pa.Table, ids: list[str], n_definitions: int) -> pa.Table:
    """The first rows of each definition of the wrong answer, as rows of other prompts."""
    size = table.num_rows // n_definitions
    rows = pa.concat_tables([table.slice(number * size, len(ids)) for number in range(n_definitions)])
    return rows.set_column(0, table.schema.field(0), pa.array(ids * n_definitions))


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Processor seconds of all threads, and what was made."""
    started = time.process_time()
    found = work()
    return time.process_time() - started, found


def peak_mb() -> int:
    """Largest resident memory of this process so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
