"""Studies of a tiny random model that run in about a second, for everything between a study and its results."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from tiny_models import saved_tiny_gpt2

from gbcd.pipeline import Run, run_study
from gbcd.run.norms_work import NormsWork
from gbcd.run.results import prompts, scan
from gbcd.study import Compute, Study

N_PROMPTS = 40
SHARD_SIZE = 8
N_SHARDS = N_PROMPTS // SHARD_SIZE
WRONG_ANSWERS = ("logit_difference", "inverse_logits")


def small_study(folder: Path, **fields: Any) -> Study:
    """A study whose model and results lie under `folder`; `fields` are its own, and those of how it is computed."""
    model = folder / "model"
    if not model.exists():
        saved_tiny_gpt2(model)
    defaults: dict[str, Any] = {
        "model": str(model),
        "tasks": ("ioi",),
        "prompts_per_task": N_PROMPTS,
        "wrong_answers": WRONG_ANSWERS,
        "out": str(folder / "out"),
    }
    how: dict[str, Any] = {"workers": 0, "device": "cpu", "shard_size": SHARD_SIZE, "batch_size": 4}
    how |= {name: fields.pop(name) for name in Compute.model_fields if name in fields}
    return Study(**{**defaults, **fields}, compute=Compute(**how))


def as_toml(study: Study, workers: int) -> str:
    """A small study as a file."""
    return (
        f'model = "{study.model}"\ntasks = ["ioi"]\nprompts_per_task = {study.prompts_per_task}\n'
        f'wrong_answers = {list(study.wrong_answers)}\nout = "{study.out}"\n'
        f'[compute]\nworkers = {workers}\ndevice = "cpu"\n'
        f"shard_size = {study.compute.shard_size}\nbatch_size = {study.compute.batch_size}\n"
    )


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds, three minutes at most."""
    for _ in range(9000):
        if condition():
            return
        time.sleep(0.02)
    raise TimeoutError("it does not happen")


def finished(study: Study, kind: type[NormsWork] = NormsWork) -> Run:
    """Run `study`, quietly."""
    return run_study(study, Console(file=io.StringIO()), kind)


def tables(out: str) -> dict[str, pl.DataFrame]:
    """Everything that readers see, in the order in which they see it."""
    return {"scan": scan(out).collect(), "prompts": prompts(out).collect()}


def same(one: dict[str, pl.DataFrame], other: dict[str, pl.DataFrame]) -> bool:
    """True if two results agree to the last bit."""
    return one.keys() == other.keys() and all(one[name].equals(other[name]) for name in one)
