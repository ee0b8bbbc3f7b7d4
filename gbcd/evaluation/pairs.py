"""Prompts that can be patched: those with a counterfactual, or a partner, of as many tokens.

Prompts of all lengths share batches, sorted by length, since padding stands on the right and nobody sees it. Compiled
programs have no counterfactuals: what is taken out of their prompts is replaced by means.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from gbcd.errors import listed
from gbcd.printing import counted
from gbcd.prompting.tokens import EncodedPrompt


class Pairs(NamedTuple):
    """Prompts of a task that can be patched, by length; and of each of the others its id and the reason."""

    usable: list[EncodedPrompt]
    refused: list[str]

    def refusals(self, task: str) -> str:
        """Who cannot be patched, and why: one line where all have the same reason."""
        reasons = Counter(text.partition(": ")[2] for text in self.refused)
        if len(reasons) == 1:
            first = self.refused[0] if len(self.refused) == 1 else f"the first is {self.refused[0]}"
            return f"{task}: {counted(len(self.refused), 'prompt')} cannot be patched, {first}"
        return f"{task}: {counted(len(self.refused), 'prompt')} cannot be patched:\n{listed(self.refused)}"


def pair_up(encoded: Sequence[EncodedPrompt], needs_reference: bool = True) -> Pairs:
    """Sort out the prompts that can be patched."""
    if not needs_reference:
        # compiled programs are compared with means throughout, whether or not a partner was drawn
        encoded = [replace(prompt, counterfactual_ids=None, partner_ids=None) for prompt in encoded]
    usable = [prompt for prompt in encoded if prompt.reference_ids is not None or not needs_reference]
    refused = [_refusal(prompt) for prompt in encoded if prompt.reference_ids is None and needs_reference]
    return Pairs(sorted(usable, key=lambda prompt: len(prompt.ids)), refused)


def _refusal(encoded: EncodedPrompt) -> str:
    if encoded.counterfactual_ids is None:
        return f"{encoded.prompt.id}: no counterfactual, and no partner"
    lengths = f"{len(encoded.ids)} tokens, but {len(encoded.counterfactual_ids)} in its counterfactual"
    return f"{encoded.prompt.id}: {lengths}, and no partner"
