"""Matrix products of the engine's own pass."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def linear(
    x: Float[Tensor, "*rows d_in"], weight: Float[Tensor, "d_in d_out"], bias: Float[Tensor, " d_out"] | None = None
) -> Float[Tensor, "*rows d_out"]:
    """`x W + b` with any strides."""
    if bias is None:
        return x @ weight
    flat = torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight)
    return flat.view(*x.shape[:-1], -1)


def by_used_rows(
    d_logits: Float[Tensor, "unit seq vocab"], unembedding: Float[Tensor, "vocab d"]
) -> Float[Tensor, "unit seq d"]:
    """`d_logits U` by the rows of U that the loss reads: a few hundred of them where it compares two tokens."""
    used = (d_logits != 0).flatten(0, 1).any(0).nonzero().squeeze(1)
    if 4 * len(used) > len(unembedding):
        return linear(d_logits, unembedding)
    return d_logits[..., used] @ unembedding[used]
