"""What the model predicts at the answer, by a plain forward pass: for what is looked at before a study is planned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from gbcd.engine.engine import packed_for
from gbcd.models.load import LoadedModel
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.run.batches import groups
from gbcd.wrong_answers.losses import set_logits

#: Sequences in a forward pass.
SEQUENCES = 64


def answer_logits(loaded: LoadedModel, sequences: Sequence[tuple[int, ...]]) -> Float[Tensor, "prompt vocab"]:
    """Logits after the last token of each of `sequences`, in float32 or wider."""
    with torch.no_grad():
        logits = loaded.decoder.run(packed_for(loaded, [(ids,) for ids in sequences])).logits[:, 0]
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def solved(prompts: Sequence[EncodedPrompt], loaded: LoadedModel) -> list[bool]:
    """Which prompts the model solves: the answer is above the wrong answer, and below it in the twin.

    Without a wrong answer, the top token must be an answer. Of sets of tokens the total probability counts.
    """
    found: list[bool] = []
    for some in groups(prompts, SEQUENCES):
        right = _above(some, answer_logits(loaded, [one.ids for one in some]))
        swapped = [one for one in some if one.twin_ids is not None and one.wrong_ids]
        in_twin = dict.fromkeys((one.prompt.id for one in some), True)
        if swapped:
            logits = answer_logits(loaded, [one.twin_ids or () for one in swapped])
            above = _above(swapped, logits)
            in_twin |= {one.prompt.id: not is_above for one, is_above in zip(swapped, above, strict=True)}
        found += [good and in_twin[one.prompt.id] for one, good in zip(some, right, strict=True)]
    return found


def _above(prompts: Sequence[EncodedPrompt], logits: Float[Tensor, "prompt vocab"]) -> list[bool]:
    right = set_logits(logits, [one.answer_ids for one in prompts])
    top = logits.argmax(1).tolist()
    wrong = set_logits(logits, [one.wrong_ids or one.answer_ids for one in prompts])
    return [
        margin > 0 if one.wrong_ids else token in one.answer_ids
        for one, margin, token in zip(prompts, (right - wrong).tolist(), top, strict=True)
    ]
