"""Studies of a tiny random model that run in about a second, for everything between a study and its results."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from tiny_models import saved_tiny_gpt2

from gbcd.job.results import coherence, prompts, scan
from gbcd.job.study import Compute, Study
from gbcd.job.workers import EngineBuilder, build_engine
from gbcd.run import Run, run_study

N_PROMPTS = 40
SHARD_SIZE = 8
N_SHARDS = N_PROMPTS // SHARD_SIZE
WRONG_ANSWERS = ("logit_difference", "inverse_logits")


def small_study(folder: Path, workers: int = 0, **fields: Any) -> Study:
    """A study whose model and results lie under `folder`."""
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
    compute = Compute(workers=workers, device="cpu", shard_size=SHARD_SIZE, batch_size=4)
    return Study(**{**defaults, **fields}, compute=compute)


def finished(study: Study, build: EngineBuilder = build_engine) -> Run:
    """Run `study` quietly."""
    return run_study(study, Console(file=io.StringIO()), build)


def tables(out: str) -> dict[str, pl.DataFrame]:
    """Everything that readers see, in the order in which they see it."""
    return {"scan": scan(out).collect(), "prompts": prompts(out).collect(), "coherence": coherence(out).collect()}


def same(one: dict[str, pl.DataFrame], other: dict[str, pl.DataFrame]) -> bool:
    """True if two results agree to the last bit."""
    return one.keys() == other.keys() and all(one[name].equals(other[name]) for name in one)
