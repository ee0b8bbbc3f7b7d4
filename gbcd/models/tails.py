"""Passes over the last tokens of prompts, where what stands before them is as it was in an earlier run.

A prompt and its counterfactual share their first tokens. What resampling replaces is there what it was, so that patched
runs need only the tokens from the first difference on, the tail; keys and values of the others are the earlier run's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from gbcd.models.decoder import Decoder, Run, Start
from gbcd.models.forward import Forward, Options, Rows
from gbcd.models.packing import Packed


def tail_of(packed: Packed, counterfactuals: Packed) -> Rows:
    """The last tokens of every pair, as many of each as the pair with most has from its first difference on.

    Args:
        packed: prompts of one sequence each.
        counterfactuals: of as many tokens each.
    """
    lengths = packed.answers + 1
    differs = (packed.ids != counterfactuals.ids).to(torch.int64)
    # of a pair without a difference, the answer alone
    first = torch.where(differs.any(1, keepdim=True), differs.argmax(1, keepdim=True), packed.answers)
    n_rows = int((lengths - first).max())
    index = lengths - n_rows + torch.arange(n_rows, device=lengths.device)
    # a prompt with fewer tokens has its first one again and again
    return Rows(packed, index.clamp(min=0))


def columns_of(packed: Packed, counterfactuals: Packed) -> Rows:
    """The tokens from the first column on at which any pair differs, or an answer stands.

    Args:
        packed: prompts of one sequence each.
        counterfactuals: of as many tokens each.
    """
    differs = (packed.ids != counterfactuals.ids).any(0)
    differs[packed.answers.min() :] = True
    columns = differs.to(torch.int64).cumsum(0).nonzero().squeeze(1)
    return Rows(packed, columns.expand(len(packed.ids), -1))


def known_in(n_layers: int) -> list[str]:
    """Values that an earlier run must record: keys and values."""
    return [f"a{layer}.{part}" for layer in range(n_layers) for part in "kv"]


def tail_run(
    decoder: Decoder, options: Options, tail: Rows, known: Mapping[str, Tensor], start: Start | None = None
) -> Run:
    """A forward pass over the tail of a causal model's prompts, without a graph.

    Args:
        decoder: the model.
        options: patches are of the tokens that are computed, which are also those recorded and kept.
        tail: from `tail_of` or `columns_of`, with the prompts that are run.
        known: what `known_in` names, of all tokens, of as many examples or of one for several.
        start: where to begin, with the tail's residual stream; without it, at the tokens.
    """
    first, x = start or Start(0, tail.of(decoder.embed(tail.packed)))
    forward = _TailForward(decoder, options, tail, known)
    with torch.no_grad():
        hidden = forward.blocks(first, x)
    return Run(decoder, tail.packed, options, x, hidden, forward.trace, forward.values)


class _TailForward(Forward):
    """A pass that computes the tail, and sees keys and values of the tokens before it."""

    def __init__(self, decoder: Decoder, options: Options, tail: Rows, known: Mapping[str, Tensor]) -> None:
        super().__init__(decoder, tail.packed, options)
        self._computed, self._known = tail, known

    def _within(self, x: Float[Tensor, "example computed d"], rows: Rows) -> Float[Tensor, "example row d"]:
        if rows is self._computed:
            return x
        assert self._computed.at is not None
        assert rows.at is not None
        places = self._computed.at.unsqueeze(1) == rows.at.unsqueeze(2)
        return rows._replace(at=places.to(torch.int64).argmax(2)).of(x)

    def _seen(self, name: str, values: Float[Tensor, "example computed slice width"]) -> Tensor:
        everything, index = self._known[name], self._computed.at
        assert index is not None
        found = everything.repeat_interleave(len(values) // len(everything), 0)
        return found.scatter_(1, index[:, :, None, None].expand_as(values), values.to(found.dtype))
