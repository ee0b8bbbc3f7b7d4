"""Prompts that can be patched: those with a counterfactual, or a partner, of as many tokens.

Prompts of all lengths share batches, sorted by length, since padding stands on the right and nobody sees it. Compiled
programs have no counterfactuals: their prompts are batched alone, and what is taken out of them is replaced by means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gbcd.engine.engine import packed_for
from gbcd.models.load import LoadedModel
from gbcd.models.packing import Packed
from gbcd.prompting.tokens import EncodedPrompt


class Batch(NamedTuple):
    """Prompts that run together; `rows` are their indices among all."""

    rows: list[int]
    prompts: list[EncodedPrompt]

    def packed(self, loaded: LoadedModel) -> Packed:
        """The prompts, laid out for the model."""
        return packed_for(loaded, [(prompt.ids,) for prompt in self.prompts])

    def packed_references(self, loaded: LoadedModel) -> Packed:
        """Their counterfactuals or partners; the prompt itself where there is neither."""
        return packed_for(loaded, [(prompt.reference_ids or prompt.ids,) for prompt in self.prompts])


@dataclass(frozen=True)
class Pairs:
    """Prompts with what they are compared with.

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


def pair_up(encoded: Sequence[EncodedPrompt], batch_size: int) -> Pairs:
    """Keep the prompts that can be patched and batch them."""
    kept = [prompt for prompt in encoded if prompt.reference_ids is not None]
    refused = tuple(_refusal(prompt) for prompt in encoded if prompt.reference_ids is None)
    return Pairs(tuple(kept), refused, _batches(kept, batch_size))


def alone(encoded: Sequence[EncodedPrompt], batch_size: int) -> Pairs:
    """Batch prompts without counterfactuals."""
    return Pairs(tuple(encoded), (), _batches(encoded, batch_size), are_pairs=False)


def _batches(kept: Sequence[EncodedPrompt], batch_size: int) -> tuple[Batch, ...]:
    rows = sorted(range(len(kept)), key=lambda row: len(kept[row].ids))
    cuts = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return tuple(Batch(cut, [kept[row] for row in cut]) for cut in cuts)


def _refusal(encoded: EncodedPrompt) -> str:
    if encoded.counterfactual_ids is None:
        return f"{encoded.prompt.id}: no counterfactual"
    lengths = f"{len(encoded.ids)} tokens, but {len(encoded.counterfactual_ids)} in its counterfactual"
    return f"{encoded.prompt.id}: {lengths}"
