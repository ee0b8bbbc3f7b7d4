"""What a node adds to the metric through the residual stream alone, with the statistics of norms held fixed.

The direct effect is `a . f` at the answer: f is the gradient of the metric by the final residual stream, passed back
through the final norm as if its statistics were constants, and a is what the node adds to that stream, after a norm of
its own where the block has one (Gemma). For the logit difference this is direct logit attribution. A group of heads
writes to its heads and not to the stream: its direct effect is zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from gbcd.evaluation.places import Place
from gbcd.models.decoder import Decoder, Run


def direct_effects(
    decoder: Decoder, run: Run, d_hidden: Float[Tensor, "prompt seq d_model"], places: Sequence[Place]
) -> Float[Tensor, "prompt place"]:
    """Direct effect of each of `places`, which are nodes.

    Args:
        decoder: the model.
        run: recorded the places' values and kept the inputs of norms (`Options.edges`).
        d_hidden: gradient of the metric by what the unembedding reads.
        places: of nodes.
    """
    direction, norm = d_hidden, decoder.final_norm
    if norm is not None:
        x = run.trace.sources[norm.component]
        _, mean, rstd = norm(x)
        direction = norm.back(d_hidden, x, mean, rstd, fixed=True)
    found = {name: _written(decoder, run, name) for name in {place.value for place in places}}
    effects = {name: torch.einsum("prsd,prd->ps", added, direction) for name, added in found.items()}
    return torch.stack([effects[place.value][:, place.slice] for place in places], 1)


def _written(decoder: Decoder, run: Run, name: str) -> Float[Tensor, "prompt seq slice d_model"]:
    """What the slices of a value add to the residual stream at the answers."""
    value = run.values[name]
    if value.shape[1] != run.packed.answers.shape[1]:
        value = run.packed.at_answers(value.flatten(2)).unflatten(2, value.shape[2:])
    block, part = name.split(".")
    if part == "out":
        return value
    if part == "v":
        return value.new_zeros(*value.shape[:3], decoder.spec.d_model)
    return decoder.written_by_heads(int(block[1:]), value)
