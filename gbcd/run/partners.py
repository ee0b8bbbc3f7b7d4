"""Partners: for a prompt without a counterfactual, another prompt of the same task, template and length.

The difference of two such prompts is what differs among prompts of the template. Partners are drawn when a study is
planned, so they depend on its seed and its prompts and never on batches, shards or workers. Drawn from are the first
`POOL` prompts of each template and length, in the shuffled order, which bounds the memory of a plan.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from hashlib import blake2b

from gbcd.prompting.outputs import OutputAnswer
from gbcd.prompting.tokens import EncodedPrompt

Answer = tuple[tuple[int, ...], OutputAnswer | None]

#: Prompts of a template and length that partners are drawn from.
POOL = 1024


class PartnerPool:
    """Takes in the prompts of one task, then gives each a partner."""

    def __init__(self, seed: int) -> None:
        """The same `seed` and prompts give the same partners."""
        self._seed = seed
        self._pools: dict[tuple[str, int], list[tuple[str, tuple[int, ...], Answer]]] = {}

    def add(self, prompts: Iterable[EncodedPrompt]) -> None:
        """Take in the next prompts, in the shuffled order."""
        for one in prompts:
            pool = self._pools.setdefault((one.prompt.template, len(one.ids)), [])
            if len(pool) < POOL:
                pool.append((one.prompt.id, one.ids, (one.answer_ids, one.outputs)))

    def with_partner(self, one: EncodedPrompt) -> EncodedPrompt:
        """`one` with a partner: one with another answer where there is such, else one with another text, else none."""
        pool = self._pools[one.prompt.template, len(one.ids)]
        start = int.from_bytes(blake2b(f"{self._seed}/{one.prompt.id}".encode(), digest_size=8).digest())
        own, partner = (one.answer_ids, one.outputs), None
        for number in range(len(pool)):
            name, ids, answer = pool[(start + number) % len(pool)]
            if ids != one.ids:
                partner = partner or (ids, name)
                if answer != own:
                    partner = ids, name
                    break
        return one if partner is None else replace(one, partner_ids=partner[0], partner_id=partner[1])
