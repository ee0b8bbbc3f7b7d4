"""Whether a model fits on a GPU, or on the share of one that a worker has, and with how many prompts.

Weights take what they take, so a model whose weights do not fit is refused. What a prompt takes is an estimate
(docs/architectures.md), which chooses the size of a batch; a batch that does not fit after all is halved.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from gbcd.errors import BadInput
from gbcd.models.spec import ModelSpec

#: How many times the inputs, outputs and attention patterns of a forward pass a study takes, edges included.
KEPT = 4

#: Share of a GPU's memory that weights and prompts may fill; the rest is for CUDA and what lies between tensors.
FILLED = 0.9


def gpu_bytes(device: torch.device) -> int:
    """Memory of a GPU."""
    return torch.cuda.mem_get_info(device)[1]


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of the weights; those that are tied count once."""
    return model.get_memory_footprint()


def prompt_bytes(model: PreTrainedModel, spec: ModelSpec, n_tokens: int) -> int:
    """Estimated bytes of one prompt of a batch: what the pass keeps, and logits in float64 for the loss."""
    width = model.dtype.itemsize
    maps = sum(sum(model.get_submodule(one.module).get_parameter("weight").shape) for one in spec.maps)
    patterns = spec.n_layers * spec.n_heads * n_tokens**2
    vocabulary = model.get_submodule(spec.embedding.unembed).get_parameter("weight").shape[0]
    logits = 3 * vocabulary * (width + torch.float64.itemsize)
    return KEPT * (width * (n_tokens * maps + patterns) + logits)


def prompts_beside(model: PreTrainedModel, spec: ModelSpec, n_tokens: int, share: float) -> int | None:
    """How many prompts fit beside the weights in a `share` of the GPU; None for a model on the processor."""
    if model.device.type != "cuda":
        return None
    room = FILLED * share * gpu_bytes(model.device) - weight_bytes(model)
    return max(0, int(room / prompt_bytes(model, spec, n_tokens)))


def refuse_too_large(model: PreTrainedModel, device: torch.device, share: float) -> None:
    """Check that the weights fit into a `share` of the GPU `device`.

    Raises:
        BadInput: they do not.
    """
    if device.type != "cuda":
        return
    needed, there = weight_bytes(model), share * gpu_bytes(device)
    if needed > there:
        dtype = str(model.dtype).removeprefix("torch.")
        halved = "" if model.dtype == torch.bfloat16 else ' dtype = "bfloat16", which takes two bytes a weight;'
        larger = "" if share == 1 else " a larger gpus_per_worker, with fewer workers on a GPU;"
        raise BadInput(
            f"its weights take {needed / 1e9:,.1f} GB in {dtype}, and a worker has {there / 1e9:,.1f} GB, {share:g} of "
            f'the GPU; a worker uses one GPU. Ways out:{halved}{larger} a GPU with more memory; device = "cpu"'
        )
