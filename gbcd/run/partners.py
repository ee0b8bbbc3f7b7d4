"""Partners: for a prompt without a counterfactual, another prompt of the same task, template and length.

The difference of two such prompts is what differs among prompts of the template. Partners are drawn when a study is
planned, so they depend on its seed and its prompts and never on batches, shards or workers. Drawn from are the first
`POOL` prompts of each template and length, in the shuffled order, which bounds the memory of a plan.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from hashlib import blake2b

from gbcd.prompting.tokens import EncodedPrompt

#: Prompts of a template and length that partners are drawn from.
POOL = 1024


class PartnerPool:
    """Takes in the prompts of one task, then gives each a partner."""

    def __init__(self, seed: int) -> None:
        """The same `seed` and prompts give the same partners."""
        self._seed = seed
        self._pools: dict[tuple[str, int], list[EncodedPrompt]] = {}

    def add(self, prompts: Iterable[EncodedPrompt]) -> None:
        """Take in the next prompts, in the shuffled order."""
        for one in prompts:
            pool = self._pools.setdefault((one.prompt.template, len(one.ids)), [])
            if len(pool) < POOL:
                pool.append(one)

    def with_partner(self, one: EncodedPrompt) -> EncodedPrompt:
        """`one` with a partner: one with another answer where there is such, else one with another text, else none."""
        pool = self._pools[one.prompt.template, len(one.ids)]
        start = int.from_bytes(blake2b(f"{self._seed}/{one.prompt.id}".encode(), digest_size=8).digest())
        answer, partner = (one.answer_ids, one.outputs), None
        for number in range(len(pool)):
            other = pool[(start + number) % len(pool)]
            if other.ids != one.ids:
                partner = partner or other
                if (other.answer_ids, other.outputs) != answer:
                    partner = other
                    break
        return one if partner is None else replace(one, partner_ids=partner.ids, partner_id=partner.prompt.id)
