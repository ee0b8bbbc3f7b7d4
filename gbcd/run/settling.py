"""What a study leaves open, settled once, in the plan: device, wrong answer, centring, sizes of batches and shards.

A batch has a fixed number of prompts, fewer where prompts are long or a GPU is small; a worker that runs out of memory
halves it. A shard is about a minute of work, by the time that a batch takes when the study is planned, so that progress
moves, and a failure costs little; and there are at least four shards for each worker, so that all are busy to the end.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from gbcd import wrong_answers
from gbcd.engine.calibration import Centering
from gbcd.engine.engine import Engine
from gbcd.engine.tables import STATISTICS
from gbcd.errors import BadInput
from gbcd.models.load import LoadedModel
from gbcd.models.memory import prompts_beside
from gbcd.prompting.outputs import space_of
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.run.draft import TaskDraft
from gbcd.run.norms_work import engine_of
from gbcd.study import Compute, Study

Device = Literal["cpu", "cuda"]

#: Share of prompts without a centred norm above which `auto` does not centre by template.
MAX_MISSED = 0.05

#: Prompts in a batch, by device. On a processor a larger one is no faster (docs/speed.md).
BATCH = {"cpu": 32, "cuda": 256}

#: Tokens in a batch, by device, padding included.
BATCH_TOKENS = {"cpu": 1 << 13, "cuda": 1 << 16}

#: Seconds of work in a shard.
SHARD_SECONDS = 60.0

#: Shards for each worker, at least.
SHARDS_PER_WORKER = 4

#: Bytes of the norms of a shard, at most.
SHARD_BYTES = 128 << 20

#: Prompts that are timed first.
FEW = 4

#: Seconds for these beyond which no whole batch is timed.
QUICK = 2.0


def settled_device(compute: Compute) -> Device:
    """The device of a study: `auto` is a GPU where workers can have one.

    Workers have what their cluster can offer, which on one that scales is more than it has now.

    Raises:
        BadInput: a GPU is asked for, and none is on offer.
    """
    if compute.device == "cpu":
        return "cpu"
    on_cluster = bool(compute.workers and os.environ.get("RAY_ADDRESS"))
    if _cluster_offers_gpu() if on_cluster else torch.cuda.is_available():
        return "cuda"
    if compute.device == "auto":
        return "cpu"
    where = "the cluster has no node with a GPU and can start none" if on_cluster else "torch finds no GPU here"
    raise BadInput(f"device 'cuda': {where}. Give --device cpu, or auto, which takes a GPU where there is one")


def as_before(study: Study, before: Study) -> Study:
    """`study` with all that it leaves open as it was settled `before`."""
    open_compute = {name: getattr(before.compute, name) for name, value in study.compute if value == "auto"}
    fields = {
        "wrong_answers": study.wrong_answers or before.wrong_answers,
        "centering": before.centering if study.centering == "auto" else study.centering,
        "statistics": _statistics(study),
    }
    return with_compute(study.model_copy(update=fields), **open_compute)


def settled(study: Study, drafts: Sequence[TaskDraft], loaded: LoadedModel) -> Study:
    """`study`, whose device is settled, with nothing left open."""
    n_prompts = sum(draft.n_prompts for draft in drafts)
    missed = sum(int(draft.coverage.missed("template")["n"].sum()) for draft in drafts)
    fields = {
        "wrong_answers": study.wrong_answers or (_default_wrong_answer(drafts, loaded),),
        "centering": centering(missed, n_prompts) if study.centering == "auto" else study.centering,
        "statistics": _statistics(study),
    }
    study = study.model_copy(update=fields)
    compute = study.compute
    batch, size = compute.batch_size, compute.shard_size
    if batch == "auto":
        longest = max(draft.longest for draft in drafts)
        batch = batch_size(
            compute.device, longest, prompts_beside(loaded.model, loaded.spec, longest, compute.gpu_share)
        )
        batch = batch if size == "auto" else min(batch, size)
    if size == "auto":
        seconds = _seconds_per_prompt(study, drafts, batch, loaded)
        row_bytes = 4 * len(study.statistics) * len(loaded.components) * len(study.wrong_answers)
        size = shard_size(n_prompts, batch, compute.workers, seconds, row_bytes)
    return with_compute(study, batch_size=batch, shard_size=batch * max(1, size // batch))


def with_compute(study: Study, **fields: Any) -> Study:
    """`study` with other `fields` of how it is computed."""
    return study.model_copy(update={"compute": study.compute.model_copy(update=fields)})


def batch_size(device: str, longest: int, at_most: int | None = None) -> int:
    """Prompts in a batch, a power of two.

    `longest` is the number of tokens of the longest prompt, with its twin; memory is for so many prompts `at_most`,
    where that is known.
    """
    fits = max(1, min(BATCH[device], BATCH_TOKENS[device] // longest, BATCH[device] if at_most is None else at_most))
    return 1 << (fits.bit_length() - 1)


def shard_size(n_prompts: int, batch: int, workers: int, seconds_per_prompt: float | None, row_bytes: int) -> int:
    """Prompts in a shard, in whole batches; at least one batch.

    One worker takes `seconds_per_prompt` (None where that was not measured), and norms of a prompt have `row_bytes`.
    """
    most = SHARD_BYTES // row_bytes
    if seconds_per_prompt is not None:
        most = min(most, int(SHARD_SECONDS / seconds_per_prompt))
    n_batches = -(-n_prompts // batch)
    return batch * max(1, min(most // batch, n_batches // (SHARDS_PER_WORKER * max(1, workers))))


def seconds_per_prompt(compute: Callable[[Sequence[EncodedPrompt]], object], batch: Sequence[EncodedPrompt]) -> float:
    """What `compute` takes for a prompt: a few are timed, then, where these are quick, the whole `batch`."""
    compute(batch[:1])  # what is done once is not timed
    for some in (batch[:FEW], batch):
        started = time.perf_counter()
        compute(some)
        seconds = time.perf_counter() - started
        if len(batch) <= FEW or seconds > QUICK:
            break
    return seconds / len(some)


def _seconds_per_prompt(study: Study, drafts: Sequence[TaskDraft], batch: int, loaded: LoadedModel) -> float | None:
    """Measured on the first batch of each task; None where the workers' device is not on this machine."""
    if loaded.device.type != study.compute.device:
        return None
    threads, found = torch.get_num_threads(), list[float]()
    torch.set_num_threads(study.compute.threads)
    try:
        for prompts in (draft.first(batch) for draft in drafts):
            calibration = Engine(loaded, study.wrong_answers).calibrate(prompts)
            found.append(seconds_per_prompt(engine_of(loaded, study, calibration).compute, prompts))
    finally:
        torch.set_num_threads(threads)
    return max(found)


def centering(missed: int, n_prompts: int) -> Centering:
    """By template, which finds the circuit better (docs/findings.md), where but few prompts would be `missed` then."""
    return "template" if missed <= MAX_MISSED * n_prompts else "position"


def _statistics(study: Study) -> tuple[str, ...]:
    """Those that a study computes, in the order of the tables."""
    return tuple(name for name in STATISTICS if name in (study.statistics or STATISTICS) or name == "grad_norm")


def _default_wrong_answer(drafts: Sequence[TaskDraft], loaded: LoadedModel) -> str:
    margin = wrong_answers.get("margin")
    is_defined = wrong_answers.why_undefined(margin, space_of(loaded.tokenizer)) is None
    return "margin" if is_defined and all(draft.has_wrong_answers for draft in drafts) else "inverse_logits"


def _cluster_offers_gpu() -> bool:
    from gbcd.run import ray_pool

    ray_pool.connect(0)
    return ray_pool.cluster_offers_gpu()
