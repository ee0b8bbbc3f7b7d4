"""How many prompts a batch and a shard have where a study leaves it open; settled once, in the plan.

A batch has a fixed number of prompts, fewer where prompts are long; a worker that runs out of memory halves it. A shard
is about a minute of work, by the time that a batch takes when the study is planned, so that progress moves, and a
failure costs little; and there are at least four shards for each worker, so that all are busy to the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from gbcd.prompting.tokens import EncodedPrompt

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


def batch_size(device: str, longest: int) -> int:
    """Prompts in a batch, a power of two; `longest` is the number of tokens of the longest prompt, with its twin."""
    fits = max(1, min(BATCH[device], BATCH_TOKENS[device] // longest))
    return 1 << (fits.bit_length() - 1)


def shard_size(n_prompts: int, batch: int, workers: int, seconds_per_prompt: float | None, row_bytes: int) -> int:
    """Prompts in a shard, in whole batches; at least one batch.

    Args:
        n_prompts: of the study.
        batch: prompts in a batch.
        workers: asked for.
        seconds_per_prompt: of one worker; None where it could not be measured.
        row_bytes: of the norms of a prompt.
    """
    most = SHARD_BYTES // row_bytes
    if seconds_per_prompt is not None:
        most = min(most, int(SHARD_SECONDS / seconds_per_prompt))
    n_batches = -(-n_prompts // batch)
    return batch * max(1, min(most // batch, n_batches // (SHARDS_PER_WORKER * max(1, workers))))


def seconds_per_prompt(compute: Callable[[Sequence[EncodedPrompt]], object], batch: Sequence[EncodedPrompt]) -> float:
    """What `compute` takes for a prompt: a few are timed, then, where these are quick, the whole `batch`."""
    compute(batch[:1])  # what is done once is not timed
    seconds = _seconds(compute, batch[:FEW])
    if len(batch) <= FEW or seconds > QUICK:
        return seconds / len(batch[:FEW])
    return _seconds(compute, batch) / len(batch)


def _seconds(compute: Callable[[Sequence[EncodedPrompt]], object], batch: Sequence[EncodedPrompt]) -> float:
    started = time.perf_counter()
    compute(batch)
    return time.perf_counter() - started
