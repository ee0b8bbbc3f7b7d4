"""How many prompts a forward pass takes where a study leaves it to the machine.

Decided once, when a study is planned, from the memory of the machine that plans it, and stored in the plan: rows must
not depend on how many workers there are, or on where a shard is computed. A worker with less memory than that halves
the batch when it runs out.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from gbcd.models.load import LoadedModel

#: Beyond so many prompts a batch is no faster on a processor (docs/speed.md), only larger.
LARGEST_ON_PROCESSOR = 64

#: Part of the memory that one batch may fill: several workers may share a machine, each with a copy of the model.
SHARE = 1 / 8

#: Memory of a GPU that the planning machine does not see, as that of a cluster's workers.
UNSEEN_GPU_BYTES = 16 << 30

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def fitting(loaded: LoadedModel, n_tokens: int, n_sequences: int, device: str, shard_size: int) -> int:
    """The largest power of two of prompts of `n_tokens` (a twin's included) whose statistics fit; at least one.

    Args:
        loaded: the model, wherever it lies now.
        n_tokens: tokens of the longest prompt of the study, and of its twin where there is one.
        n_sequences: 2 with a twin, else 1.
        device: `cpu` or `cuda`, where workers compute.
        shard_size: no batch is larger than a shard.
    """
    room = SHARE * (machine_bytes() if device == "cpu" else _gpu_bytes())
    most = min(shard_size, LARGEST_ON_PROCESSOR) if device == "cpu" else shard_size
    fits = min(most, int(room / bytes_per_prompt(loaded, n_tokens, n_sequences)))
    return 1 << max(0, fits.bit_length() - 1)


def bytes_per_prompt(loaded: LoadedModel, n_tokens: int, n_sequences: int) -> float:
    """Memory that all statistics of one more prompt in a batch need: activations, attention patterns, logits.

    An estimate: four times what the maps of one forward pass read and write.
    """
    spec, itemsize = loaded.spec, loaded.dtype.itemsize
    kept = sum(sum(loaded.model.get_parameter(f"{one.module}.weight").shape) for one in spec.maps) * n_tokens
    patterns = spec.n_layers * spec.n_heads * n_tokens**2
    # the loss and its gradient are float64
    logits = n_sequences * loaded.vocabulary_size * (3 * itemsize + 3 * 8)
    return 4.0 * ((kept + patterns) * itemsize + logits)


def machine_bytes() -> int:
    """Memory of this machine, or of the container that this process is confined to."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.exists() else "max"
    return physical if limit == "max" else min(physical, int(limit))


def _gpu_bytes() -> int:
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else UNSEEN_GPU_BYTES
