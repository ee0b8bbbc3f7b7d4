"""What a run costs beside the computation: planning, driving, committing, resuming, reducing, reading.

    python benchmarks/scale.py job --prompts 10000        # a whole run on Ray, beside the engine alone
    python benchmarks/scale.py store --prompts 100000     # all of it but the gradients, which are repeated
    python benchmarks/scale.py resume --prompts 10000 --shard-size 1   # ten thousand committed shards

`job` runs a study on two workers of one thread and holds its rate, from the first commit to the last, against as many
processes that only compute. `store` computes 256 prompts once and lets the real driver commit their values, under the
identifiers of all prompts, through the real writer: what it measures is exact, but the norms repeat, so sizes are
not measured. `resume` commits one shard's files for every shard. Each line of output is one
JSON object; memory is the process's peak, and times of `store` and `resume` are processor seconds of all threads, on
which other work on the machine has little effect, and, as `_wall_s`, those of the wall.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

import polars as pl
import pyarrow as pa
from rich.console import Console

from gbcd.analysis.reduce import reduce
from gbcd.engine.tables import ShardTables
from gbcd.pipeline import run_study
from gbcd.run.commits import read_commits
from gbcd.run.executor import Team, execute
from gbcd.run.norms_work import MEANS, MEANS_KEY, NORMS, NormsWork, read_means, stages
from gbcd.run.planning import open_plan
from gbcd.run.progress import ProgressDisplay
from gbcd.run.results import map_shards, scan
from gbcd.run.shards import Plan, read_plan
from gbcd.run.status import folder_status
from gbcd.run.store import Store
from gbcd.run.verification import verify
from gbcd.run.work import OnProgress, Tables, Workers
from gbcd.study import Compute, Study

QUIET = Console(file=io.StringIO())

T = TypeVar("T")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("what", choices=["job", "store", "resume"])
    arguments.add_argument("--prompts", type=int, required=True)
    arguments.add_argument("--shard-size", type=int, default=256)
    arguments.add_argument("--wrong-answer", action="append")
    arguments.add_argument("--workers", type=int, default=2, help="of `job`")
    arguments.add_argument("--model", default="reference", help="reference, or the folder of a model")
    arguments.add_argument("--folder", help="where to write; a temporary folder otherwise")
    asked = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        study = Study(
            tasks=("ioi",),
            model=asked.model,
            prompts_per_task=asked.prompts,
            wrong_answers=tuple(asked.wrong_answer or ["inverse_logits"]),
            out=f"{folder}/out",
            compute=Compute(workers=asked.workers, device="cpu", shard_size=asked.shard_size),
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
    shards = read_plan(Store(study.out)).shards
    rate = sum(shards[commit.shard].n_prompts for commit in commits[1:]) / (last - first).total_seconds()
    with multiprocessing.get_context("spawn").Pool(study.compute.workers) as processes:
        of = study.compute.workers
        rates = processes.starmap(engine_rate, [(study.out, number, of) for number in range(of)])
    return {
        "seconds": round(seconds, 1),
        "prompts_per_second": round(rate, 1),
        "engine_alone_prompts_per_second": round(sum(rates), 1),
        "job_to_engine": round(rate / sum(rates), 3),
        "driver_peak_mb": peak_mb(),
    }


def engine_rate(out: str, number: int, of: int) -> float:
    """Prompts per second of one process that computes its share of the shards and keeps nothing."""
    work = NormsWork(out)
    shards = read_plan(Store(out)).shards[number::of]
    work.compute(NORMS, shards[0].id, lambda done: None)  # warms up
    started = time.perf_counter()
    for shard in shards:
        work.compute(NORMS, shard.id, lambda done: None)
    return sum(shard.n_prompts for shard in shards) / (time.perf_counter() - started)


def store(study: Study, folder: str) -> dict[str, Any]:
    """Everything around the computation, at the size of `study`."""
    clock, before = Clock(), peak_mb()
    planned, work = clock.timed("plan", lambda: open_plan(study)), repeating(study, folder, 256)
    clock.found["plan_grows_mb"] = peak_mb() - before
    committed(clock, planned.plan, work)
    clock.timed("reduce", lambda: reduce(study.out))
    mean = scan(study.out).group_by("component").agg(pl.col("grad_norm").mean())
    clock.timed("mean_per_component", lambda: mean.collect(engine="streaming"))
    one = scan(study.out).filter(pl.col("component") == "a2.h3.q").select("prompt_id", "grad_norm")
    clock.timed("one_part", lambda: one.collect(engine="streaming"))
    return clock.found | {"peak_mb": peak_mb()}


def resume(study: Study, folder: str) -> dict[str, Any]:
    """A run that finds everything committed, `gbcd status` and `gbcd verify` of it."""
    clock, planned = Clock(), open_plan(study)
    committed(clock, planned.plan, repeating(study, folder, cast(int, study.compute.shard_size)))
    return clock.found | {"peak_mb": peak_mb()}


def committed(clock: Clock, plan: Plan, work: Callable[[], RepeatingWork]) -> None:
    """Commit every shard, find all of them, and verify them."""
    made = work()
    clock.timed("commit", lambda: drive(plan, made))
    clock.found["shards"] = len(plan.shards)
    clock.found["commit_ms_per_shard"] = round(1e3 * clock.found["commit_s"] / len(plan.shards), 2)
    clock.timed("resume", lambda: drive(open_plan(plan.study).plan, made))
    clock.timed("status", lambda: folder_status(plan.study.out))
    clock.timed("verify", lambda: verify(plan.study.out))


def repeating(study: Study, folder: str, n_prompts: int) -> Callable[[], RepeatingWork]:
    """Work that repeats the values of one shard of so many prompts, which is computed here."""
    compute = Compute(workers=0, device="cpu", shard_size=n_prompts)
    small = study.model_copy(update={"prompts_per_task": n_prompts, "out": f"{folder}/computed", "compute": compute})
    run_study(small, QUIET)
    (computed,) = map_shards(Store(small.out), lambda tables: tables)
    return lambda: RepeatingWork(study.out, read_plan(Store(study.out)), computed)


def drive(plan: Plan, work: RepeatingWork) -> None:
    with Team(plan.study.out, lambda: work, Workers(0)) as team, ProgressDisplay(QUIET) as display:
        execute(team, stages(plan), display)


class RepeatingWork(NormsWork):
    """Gives the same values for every shard, under the identifiers of its prompts."""

    def __init__(self, out: str, plan: Plan, computed: ShardTables) -> None:
        super().__init__(out)
        self._computed, self._means_sha256 = computed, ""

    def compute(self, stage: str, shard: int, on_progress: OnProgress) -> Tables:
        if stage == MEANS:
            return super().compute(stage, shard, on_progress)
        plan = self._plan
        if not self._means_sha256:
            _, self._means_sha256 = read_means(self._store, plan, plan.shards[shard].task)
        ids, n = self._inputs.ids(plan.shards[shard]), len(plan.study.wrong_answers)
        norms = renamed(self._computed.norms, ids, n)
        return {
            "prompts": renamed(self._computed.prompts, ids, n),
            "norms": norms.replace_schema_metadata({MEANS_KEY: self._means_sha256.encode()}),
        }


def renamed(table: pa.Table, ids: list[str], n_definitions: int) -> pa.Table:
    """The first rows of each definition of the wrong answer, as rows of other prompts."""
    size = table.num_rows // n_definitions
    rows = pa.concat_tables([table.slice(number * size, len(ids)) for number in range(n_definitions)])
    return rows.set_column(0, table.schema.field(0), pa.array(ids * n_definitions))


class Clock:
    """Seconds of steps: of the processor, over all threads, and of the wall."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def timed(self, name: str, work: Callable[[], T]) -> T:
        processor, wall = time.process_time(), time.perf_counter()
        made = work()
        self.found[f"{name}_s"] = round(time.process_time() - processor, 2)
        self.found[f"{name}_wall_s"] = round(time.perf_counter() - wall, 2)
        print(name, self.found[f"{name}_s"], self.found[f"{name}_wall_s"], peak_mb(), file=sys.stderr, flush=True)
        return made


def peak_mb() -> int:
    """Largest resident memory of this process so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
