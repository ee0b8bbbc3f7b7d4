"""Random prompts as token ids, with two answers, a wrong answer, and a twin that differs in one token."""

from __future__ import annotations

import random
from collections.abc import Sequence

from gbcd.prompting.prompt import Prompt
from gbcd.prompting.tokens import EncodedPrompt

VOCAB = 53


def random_prompts(lengths: Sequence[int], seed: int = 0) -> list[EncodedPrompt]:
    """One prompt per length, of task `p` and two templates in turn."""
    rng = random.Random(seed)
    found: list[EncodedPrompt] = []
    for index, length in enumerate(lengths):
        ids = tuple(rng.randrange(VOCAB) for _ in range(length))
        changed = rng.randrange(length)
        twin = (*ids[:changed], (ids[changed] + 1) % VOCAB, *ids[changed + 1 :])
        answer, wrong, other = rng.sample(range(VOCAB), 3)
        record = Prompt(f"p/{index}", "p", f"t{index % 2}", f"prompt {index}", (" answer",))
        found.append(EncodedPrompt(record, ids, (answer, other), (wrong,), twin, None))
    return found
