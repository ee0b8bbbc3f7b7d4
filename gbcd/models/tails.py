"""Passes over the last tokens of prompts, where what stands before them is as it was in an earlier run.

A prompt and its counterfactual share their first tokens. What resampling replaces is there what it was, so that patched
runs need only the tokens from the first difference on, the tail; keys and values of the others are the earlier run's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from gbcd.models.blocks import Attention
from gbcd.models.decoder import Decoder
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
    return Rows(replace(packed, answers=index.clamp(min=0)), True)


def known_in(n_layers: int) -> list[str]:
    """Values that an earlier run must record: keys and values."""
    return [f"a{layer}.{part}" for layer in range(n_layers) for part in "kv"]


class TailForward(Forward):
    """A forward pass over the tail of a causal model's prompts; the last block computes the answers alone."""

    def __init__(
        self, decoder: Decoder, packed: Packed, options: Options, tail: Rows, known: Mapping[str, Tensor]
    ) -> None:
        """Nothing runs yet.

        Args:
            decoder: the model.
            packed: the prompts, one sequence each.
            options: patches are of the tokens that are computed.
            tail: from `tail_of`.
            known: what `known_in` names, of all tokens.
        """
        super().__init__(decoder, packed, options)
        self._tail, self._known = tail, known

    def blocks(self, first: int, x: Float[Tensor, "example pos d"]) -> Float[Tensor, "example row d"]:
        """Every block from `first` on, and the final norm; `x` is of the tail."""
        last = self.decoder.spec.n_layers - 1
        for layer in range(first, last):
            x = self._tail_block(layer, x, self._tail)
        answers = Rows(self.packed, True)
        return self.normed(self._tail_block(last, x, answers), self.decoder.final_norm, answers)

    def _tail_block(
        self, layer: int, x: Float[Tensor, "example row d"], rows: Rows
    ) -> Float[Tensor, "example computed d"]:
        return self._added(layer, x, x[:, -rows.packed.answers.shape[1] :], rows)

    def _attention(
        self, layer: int, block: Attention, x: Float[Tensor, "example pos d"], rows: Rows
    ) -> Float[Tensor, "example row d"]:
        normal = self.normed(x, block.norm, self._tail)
        read = normal[:, -rows.packed.answers.shape[1] :]
        parts = self._parts(read, block.query_maps, rows.named(f"a{layer}.qkv", read))
        parts |= self._parts(normal, block.other_maps, self._tail.named(f"a{layer}.qkv", normal))
        q, k, v = (self._patched(f"a{layer}.{part}", parts[part]) for part in "qkv")
        k, v = (in_place(self._tail, self._known[f"a{layer}.{part}"], one) for part, one in (("k", k), ("v", v)))
        z = self._patched(f"a{layer}.z", self.mixed(layer, block, q, k, v, rows)).flatten(2)
        written = block.out(z)
        return written if block.post_norm is None else self.normed(written, block.post_norm, rows)


def in_place(
    tail: Rows, everything: Float[Tensor, "pair pos slice width"], values: Float[Tensor, "example row slice width"]
) -> Float[Tensor, "example pos slice width"]:
    """`everything`, of as many examples as there are, with `values` in the tail."""
    found = everything.repeat_interleave(len(values) // len(everything), 0)
    index = tail.packed.answers[:, :, None, None].expand_as(values)
    return found.scatter_(1, index, values.to(found.dtype))
