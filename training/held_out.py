"""Which prompts the reference model never sees in training, so that its quality is measured on new combinations.

A tenth of all *combinations* is held out, chosen by a hash. What counts as a combination is stated for each task
below; it is what the model could learn by heart instead of computing, and a held-out one occurs in no training prompt
of the task, whatever the template, place, object or filler.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from gbcd import tasks
from gbcd.prompting.prompt import Prompt

SHARE = 10


def _unordered_pair(prompt: Prompt) -> str:
    """The two names (IOI) or the two undocumented parameters (Docstring), in either order."""
    return "".join(sorted([*prompt.answers, *prompt.wrong_answers]))


def _last_token_and_answer(prompt: Prompt) -> str:
    """Induction: the surname, or the pair of words."""
    return prompt.text.rpartition(" ")[2] + prompt.answers[0]


def _text(prompt: Prompt) -> str:
    """Greater-Than: template, noun and start year."""
    return prompt.text


COMBINATION: dict[str, Callable[[Prompt], str]] = {
    "ioi": _unordered_pair,
    "docstring": _unordered_pair,
    "induction": _last_token_and_answer,
    "greater_than": _text,
}


def is_held_out(prompt: Prompt) -> bool:
    """True if the prompt's combination belongs to the tenth that is never trained on."""
    combination = f"{prompt.task}/{COMBINATION[prompt.task](prompt)}"
    return int.from_bytes(hashlib.sha256(combination.encode()).digest()[:8], "big") % SHARE == 0


def held_out_prompts(task: str, tokenizer: PreTrainedTokenizerBase, n: int, seed: int) -> list[Prompt]:
    """`n` held-out prompts of `task`, the same for the same seed."""
    wanted = 2 * SHARE * n + 200
    return [prompt for prompt in tasks.draw(task, tokenizer, wanted, seed) if is_held_out(prompt)][:n]


def training_prompts(task: str, tokenizer: PreTrainedTokenizerBase, n: int, seed: int) -> list[Prompt]:
    """About `n` prompts of `task` for training: a draw without the held-out ones."""
    return [prompt for prompt in tasks.draw(task, tokenizer, n, seed) if not is_held_out(prompt)]
