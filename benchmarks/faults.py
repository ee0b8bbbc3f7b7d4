"""Every fault again and again, at places and moments that a seed draws; prints the table of docs/reliability.md.

    python benchmarks/faults.py --repeats 10 --slow-repeats 2
    python benchmarks/faults.py --repeats 0 --evaluations 20 --evaluations-on-ray 5

A repeat runs a small study into a new folder, breaks it, lets the same command go on (or `verify` and `--repair` find
and mend it), and holds the final tables against those of an uninterrupted run, bit by bit. `lost` and `doubled` count
rows of prompts over all repeats, `differ` repeats with any other value. Processes are real: they are killed by signals,
or by themselves at a named place (`tests/dying_run.py`). Slow faults need Ray or an S3 server. Evaluations are of the
shipped model: the process is killed at a moment drawn from the seconds that a whole one takes, or the driver of two
Ray workers behind a shard that is drawn, or one of these workers at a pair that is drawn.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial, partialmethod
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).parent.parent / "tests"))

import dying_run
import fault_engines
import polars as pl
from evaluation_faults import evaluations
from faulty_s3 import Fault, FaultyS3
from ray import cloudpickle
from small_runs import N_PROMPTS, N_SHARDS, as_toml, finished, same, small_study, tables

from gbcd.errors import Incomplete
from gbcd.run import ray_pool
from gbcd.run.store import Store
from gbcd.run.verification import forget, verify
from gbcd.study import Study

processes = multiprocessing.get_context("forkserver")

#: Seconds within which a small run is over; a signal comes at a moment drawn from them.
RUN_SECONDS = 1.0

Break = Callable[[Study, random.Random], None]


class Found(NamedTuple):
    """Rows of prompts that are missing, rows that are there more than once, and whether anything else differs."""

    lost: int
    doubled: int
    different: bool


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--repeats", type=int, default=10)
    arguments.add_argument("--slow-repeats", type=int, default=0)
    arguments.add_argument("--only", default="", help="faults whose name has this in it")
    arguments.add_argument("--evaluations", type=int, default=0)
    arguments.add_argument("--evaluations-on-ray", type=int, default=0)
    arguments.add_argument("--first-seed", type=int, default=0, help="of evaluations")
    asked = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        reference = small_study(Path(folder))
        finished(reference)
        print("| fault | runs | rows lost | rows doubled | runs that differ |\n|---|---|---|---|---|", flush=True)
        for faults, repeats in ((FAULTS, asked.repeats), (SLOW_FAULTS, asked.slow_repeats)):
            for name, fault in faults.items():
                if asked.only in name:
                    report(name, fault, reference, repeats)
        if asked.evaluations or asked.evaluations_on_ray:
            evaluations(Path(folder), asked.evaluations, asked.evaluations_on_ray, asked.first_seed)


def report(name: str, fault: Break, reference: Study, repeats: int) -> None:
    found = [broken_and_resumed(fault, reference, seed) for seed in range(repeats)]
    lost, doubled, different = (sum(column) for column in zip(*found, strict=True)) if found else (0, 0, 0)
    print(f"| {name} | {repeats} | {lost} | {doubled} | {different} |", flush=True)


def broken_and_resumed(fault: Break, reference: Study, seed: int) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        study = reference.model_copy(update={"out": f"{folder}/out"})
        fault(study, random.Random(seed))
        found = verify(study.out)
        if not found.is_sound:
            forget(study.out, found)
        finished(study)
        return compared(study, reference)


def compared(study: Study, reference: Study) -> Found:
    mine, right = tables(study.out), tables(reference.out)
    keys = ["prompt_id", "wrong_answer"]
    counts = mine["prompts"].group_by(keys).len()
    lost = right["prompts"].join(counts, on=keys, how="anti").height
    doubled = counts.filter(pl.col("len") > 1).height
    return Found(lost, doubled, not (same(mine, right) and verify(study.out).is_sound))


# What a process does.


def run_in_process(study: Study, place: str = "", shard: int = 0) -> None:
    if place:
        method, replacement = dying_run.PLACES[place]
        setattr(Store, method, partialmethod(replacement, shard=shard))
    finished(study)


def started(target: Callable[..., None], *arguments: object) -> ForkServerProcess:
    process = processes.Process(target=target, args=arguments)
    process.start()
    return process


# How it is broken.


def dies_at(place: str, study: Study, rng: random.Random) -> None:
    process = started(run_in_process, study, place, rng.randrange(N_SHARDS))
    process.join()
    assert process.exitcode == -signal.SIGKILL


def signalled(how: signal.Signals, study: Study, rng: random.Random) -> None:
    process = started(run_in_process, study)
    while not Path(study.out, "plan.json").exists():
        time.sleep(0.005)
    time.sleep(rng.uniform(0, RUN_SECONDS))
    os.kill(process.pid or 0, how)
    process.join()


def two_drivers(study: Study, rng: random.Random) -> None:
    """Both at once, and one of them killed."""
    survivor = started(run_in_process, study)
    signalled(signal.SIGKILL, study, rng)
    survivor.join()


def out_of_space(study: Study, rng: random.Random) -> None:
    left, norms = [rng.randrange(1, N_SHARDS)], Path(study.out, "norms")

    def fill(prompts: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            norms.rename(f"{norms}-kept")
            norms.symlink_to("/dev/full")

    try:
        finished(study, fault_engines.faulty(fill))
    except Incomplete:
        norms.unlink()
        Path(f"{norms}-kept").rename(norms)


def poisoned(study: Study, rng: random.Random) -> None:
    run = finished(study, fault_engines.failing_on(f"ioi/{rng.randrange(N_PROMPTS):06d}"))
    assert len(run.failed) == 1


def damaged(study: Study, rng: random.Random) -> None:
    """One or two committed files truncated, flipped in one bit, deleted, or swapped."""
    finished(study)
    files = sorted(path for kind in ("prompts", "norms") for path in Path(study.out, kind).iterdir())
    one, other = rng.sample(files, 2)
    content = bytearray(one.read_bytes())
    how = rng.choice(["truncated", "flipped", "deleted", "swapped"])
    if how == "truncated":
        one.write_bytes(content[: rng.randrange(len(content))])
    elif how == "flipped":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        one.write_bytes(content)
    elif how == "deleted":
        one.unlink()
    else:
        one.write_bytes(other.read_bytes())
        other.write_bytes(content)
    assert not verify(study.out).is_sound


def worker_killed(how: signal.Signals, study: Study, rng: random.Random) -> None:
    """One of two Ray actors, by SIGKILL or stopped by SIGSTOP, on a prompt that a seed draws."""
    cloudpickle.register_pickle_by_value(fault_engines)  # workers do not have it on their path
    ray_pool.FLOOR = ray_pool.UNMEASURED = 5.0
    ray_pool.FACTOR = 0.0
    marker = f"{study.out}.died"
    prompt = f"ioi/{rng.randrange(N_PROMPTS):06d}"
    on_ray = study.model_copy(update={"compute": study.compute.model_copy(update={"workers": 2})})
    finished(on_ray, fault_engines.killed_by(prompt, marker, how))
    assert Path(marker).exists()


def driver_killed(study: Study, rng: random.Random) -> None:
    """The driver of two Ray workers, and with it the Ray that it had started."""
    file = Path(f"{study.out}.toml")
    file.write_text(as_toml(study, workers=2))
    process = processes.Process(
        target=os.execv, args=(sys.executable, [sys.executable, "-m", "gbcd", "run", str(file)])
    )
    process.start()
    while process.is_alive() and not any(Path(study.out, "commits").glob("*.json")):
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.1))
    process.kill()
    process.join()
    time.sleep(1.0)


def faulty_bucket(study: Study, rng: random.Random) -> None:
    """A bucket whose server fails one request of eight; its objects become the folder that is compared."""
    server = FaultyS3()
    os.environ.update(server.environment())
    server.make_bucket("bucket")
    faults: list[Fault] = ["500", "503", "lost"]
    last = [False]

    def decide(method: str, path: str) -> Fault | None:
        last[0] = not last[0] and rng.random() < 1 / 8  # retries can do their work
        return rng.choice(faults) if last[0] else None

    server.decide = decide
    finished(study.model_copy(update={"out": "s3://bucket/study"}))
    server.decide = lambda method, path: None
    for path, content in objects("s3://bucket/study"):
        Path(study.out, path).parent.mkdir(parents=True, exist_ok=True)
        Path(study.out, path).write_bytes(content)
    server.close()


def objects(location: str) -> Iterator[tuple[str, bytes]]:
    store = Store(location)
    for entry in store.list(""):
        yield entry.path, store.read(entry.path)


FAULTS: dict[str, Break] = {
    **{f"process ends: {place}": partial(dies_at, place) for place in dying_run.PLACES},
    "SIGKILL at any moment": partial(signalled, signal.SIGKILL),
    "SIGTERM at any moment": partial(signalled, signal.SIGTERM),
    "two drivers, one killed": two_drivers,
    "disk full": out_of_space,
    "failed prompt, repaired": poisoned,
    "committed file damaged": damaged,
}
SLOW_FAULTS: dict[str, Break] = {
    "Ray worker killed": partial(worker_killed, signal.SIGKILL),
    "Ray worker stopped": partial(worker_killed, signal.SIGSTOP),
    "driver of Ray workers killed": driver_killed,
    "S3 fails one request of eight": faulty_bucket,
}

if __name__ == "__main__":
    main()
