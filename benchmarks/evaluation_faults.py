"""Evaluations of the shipped model that are killed, for `faults.py`."""

from __future__ import annotations

import math
import multiprocessing
import random
import shutil
import signal
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from small_runs import finished

from gbcd.evaluation.evaluate import evaluate
from gbcd.evaluation.evaluation_plan import PAIRS_PER_BLOCK
from gbcd.run.own_definitions import read_definitions
from gbcd.study import make_study

#: Pairs of an evaluation, which are some shards.
EVALUATED = 18

#: Of both stages of one.
N_SHARDS = 2 * math.ceil(EVALUATED / PAIRS_PER_BLOCK)

#: A score that kills the process once.
KILLER = """
import os, signal
from pathlib import Path
import numpy as np
from gbcd.evaluation.baselines import baseline

@baseline("killer")
def killer(context):
    if {pair!r} in [one.prompt.id for one in context.prompts] and not Path({marker!r}).exists():
        Path({marker!r}).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return np.zeros(len(context.components))
"""


def evaluations(folder: Path, n_processes: int, n_workers: int, first: int) -> None:
    """Rows of the table: evaluations whose process is killed, those whose driver of Ray workers is, or a worker."""
    fields = {"model": "reference", "tasks": ["ioi"], "prompts_per_task": EVALUATED, "compute": {"workers": 0}}
    study = make_study({**fields, "out": str(folder / "evaluated")})
    finished(study)
    begun = time.perf_counter()
    right = uninterrupted(study.out, f"{folder}/whole")
    seconds = time.perf_counter() - begun
    wrong = sum(
        killed(study.out, f"{folder}/killed{seed}", seconds, seed) != right
        for seed in range(first, first + n_processes)
    )
    print(f"| evaluation, SIGKILL at any moment | {n_processes} | | | {wrong} |", flush=True)
    if n_workers:
        wrong = sum(
            driver_killed(study.out, f"{folder}/driver{seed}", seed) != right
            for seed in range(first, first + n_workers)
        )
        print(f"| evaluation, driver of Ray workers killed | {n_workers} | | | {wrong} |", flush=True)
        Path(f"{folder}/spared.died").touch()
        right = uninterrupted(study.out, f"{folder}/spared", killer(f"{folder}/spared", seed=0))
        wrong = sum(
            worker_killed(study.out, f"{folder}/worker{seed}", seed) != right
            for seed in range(first, first + n_workers)
        )
        print(f"| evaluation, Ray worker killed | {n_workers} | | | {wrong} |", flush=True)


def uninterrupted(study: str, out: str, definitions: str = "") -> list[bytes]:
    shutil.copytree(study, out)
    started(out, 0, definitions).join()
    return tables(out)


def killed(study: str, out: str, seconds: float, seed: int) -> list[bytes]:
    shutil.copytree(study, out)
    process = started(out)
    process.join(random.Random(seed).uniform(0, seconds))
    process.kill()
    process.join()
    started(out).join()
    return tables(out)


def driver_killed(study: str, out: str, seed: int) -> list[bytes]:
    """The driver of two Ray workers is killed when so many shards are committed as a seed draws."""
    shutil.copytree(study, out)
    process, n_committed = started(out, 2), random.Random(seed).randrange(1, N_SHARDS)
    while process.is_alive() and len(list(Path(out).glob("evaluation/*/*/commits/*.json"))) < n_committed:
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    started(out, 2).join()
    return tables(out)


def worker_killed(study: str, out: str, seed: int) -> list[bytes]:
    """One of two Ray workers kills itself at a pair that is drawn; the evaluation goes on."""
    shutil.copytree(study, out)
    process = started(out, 2, killer(out, seed))
    process.join()
    assert process.exitcode == 0
    assert Path(f"{out}.died").exists()
    return tables(out)


def killer(out: str, seed: int) -> str:
    """A file with a score that kills once."""
    pair, path = f"ioi/{random.Random(seed).randrange(EVALUATED):06d}", Path(f"{out}.py")
    path.write_text(KILLER.format(pair=pair, marker=f"{out}.died"))
    return str(path)


def tables(out: str) -> list[bytes]:
    names = ["evaluation", "effects", "faithfulness", "edge_faithfulness", "edge_scores", "effects/effects.ioi"]
    return [Path(out, f"{name}.parquet").read_bytes() for name in names]


def evaluated(out: str, workers: int = 0, definitions: str = "") -> None:
    evaluate(out, EVALUATED, workers=workers, definitions=read_definitions([definitions] if definitions else []))


def started(*arguments: object) -> ForkServerProcess:
    """`evaluated` in a process of its own."""
    process = multiprocessing.get_context("forkserver").Process(target=evaluated, args=arguments)
    process.start()
    return process
