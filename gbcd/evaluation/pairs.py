"""Prompts that can be patched: those with a counterfactual of the same length, token for token.

They are batched by length, so that no batch needs padding and a position means the same in both passes. Compiled
programs have no counterfactuals: their prompts are batched alone, and what is taken out of them is replaced by means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from gbcd.prompting.tokens import EncodedPrompt


class Batch(NamedTuple):
    """Pairs of one length. `rows` are their indices among the pairs; without counterfactuals `away` is 0."""

    rows: list[int]
    ids: Int[Tensor, "batch pos"]
    counterfactual_ids: Int[Tensor, "batch away"]


@dataclass(frozen=True)
class Pairs:
    """Prompts with their counterfactuals.

    Attributes:
        encoded: prompts that can be patched.
        refused: for each of the others, its id and the reason.
        batches: all pairs, by length.
        are_pairs: False for prompts alone.
    """

    encoded: tuple[EncodedPrompt, ...]
    refused: tuple[str, ...]
    batches: tuple[Batch, ...]
    are_pairs: bool = True

    @property
    def n_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(batch.ids.numel() for batch in self.batches)


def pair_up(encoded: Sequence[EncodedPrompt], batch_size: int) -> Pairs:
    """Keep the prompts that can be patched and batch them."""
    kept = [prompt for prompt in encoded if _refusal(prompt) is None]
    refused = tuple(reason for prompt in encoded if (reason := _refusal(prompt)) is not None)
    return Pairs(tuple(kept), refused, _batches(kept, batch_size))


def alone(encoded: Sequence[EncodedPrompt], batch_size: int) -> Pairs:
    """Batch prompts without counterfactuals."""
    return Pairs(tuple(encoded), (), _batches(encoded, batch_size), are_pairs=False)


def _batches(kept: Sequence[EncodedPrompt], batch_size: int) -> tuple[Batch, ...]:
    by_length: dict[int, list[int]] = {}
    for row, prompt in enumerate(kept):
        by_length.setdefault(len(prompt.ids), []).append(row)
    return tuple(
        _batch(kept, rows[start : start + batch_size])
        for _, rows in sorted(by_length.items())
        for start in range(0, len(rows), batch_size)
    )


def _refusal(encoded: EncodedPrompt) -> str | None:
    if encoded.counterfactual_ids is None:
        return f"{encoded.prompt.id}: no counterfactual"
    if len(encoded.ids) != len(encoded.counterfactual_ids):
        lengths = f"{len(encoded.ids)} tokens, but {len(encoded.counterfactual_ids)} in its counterfactual"
        return f"{encoded.prompt.id}: {lengths}"
    return None


def _batch(kept: Sequence[EncodedPrompt], rows: list[int]) -> Batch:
    counterfactuals = [kept[row].counterfactual_ids or () for row in rows]
    return Batch(rows, torch.tensor([kept[row].ids for row in rows]), torch.tensor(counterfactuals))
