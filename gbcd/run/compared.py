"""What the prompts of a task are compared with, settled when a study is planned: partners, and means that reach them.

A prompt without a counterfactual has a partner: another prompt of the same task, template and length. The difference of
two such prompts is what differs among prompts of the template. Partners depend on the study's seed and its prompts and
never on batches, shards or workers. Drawn from are the first `POOL` prompts of each template and length, in the
shuffled order, which bounds the memory of a plan.

A position has a mean input only if enough prompts of the calibration sample reach it (`MIN_PROMPTS`), and with the
centring `template` only prompts of the same template count. Prompts beyond that are named here, not guessed at later.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from hashlib import blake2b

import numpy as np
import polars as pl
import pyarrow as pa

from gbcd.engine.calibration import MIN_PROMPTS, Centering
from gbcd.errors import listed
from gbcd.printing import counted
from gbcd.prompting.outputs import OutputAnswer
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.run.batches import lengths

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


class CentringCoverage:
    """Counts the prompts of one task by template and length, in the order in which they are stored."""

    def __init__(self, task: str, sample_size: int) -> None:
        """The first `sample_size` prompts are the calibration sample."""
        self._task, self._sample_size = task, sample_size
        self._counts: list[pl.DataFrame] = []

    def add(self, rows: pa.Table) -> None:
        """Take in the next prompts, rows of `inputs.SCHEMA`."""
        own = lengths(rows["ids"])
        table = pl.DataFrame(
            {
                "template": rows["template"].to_pylist(),
                "length": own,
                "longest": np.maximum(own, lengths(rows["twin_ids"])),
                "is_sample": rows["place"].to_numpy() < self._sample_size,
            }
        )
        self._counts.append(table.group_by(table.columns).agg(n=pl.len().cast(pl.Int64)))

    def sample_sizes(self, centering: Centering) -> dict[str, int]:
        """How many prompts of the calibration sample each group has."""
        return dict(self._grouped(centering).filter("is_sample").group_by("group").agg(pl.col("n").sum()).iter_rows())

    def missed(self, centering: Centering) -> pl.DataFrame:
        """Prompts that will have no centred norm: `group, longest` (in tokens), `n` and how far means `reach`."""
        counts = self._grouped(centering)
        enough = (
            counts.filter("is_sample")
            .sort("length", descending=True)
            .filter(pl.col("n").cum_sum().over("group") >= MIN_PROMPTS)
        )
        reach = enough.group_by("group").agg(reach=pl.col("length").max())
        return (
            counts.group_by("group", "longest")
            .agg(pl.col("n").sum())
            .join(reach, on="group", how="left")
            .with_columns(pl.col("reach").fill_null(0))
            .filter(pl.col("longest") > pl.col("reach"))
            .sort("group", "longest")
        )

    def shortfall(self, centering: Centering) -> str | None:
        """What a person should know, or None where every prompt will have a centred norm."""
        missed = self.missed(centering)
        if missed.is_empty():
            return None
        counts = self._grouped(centering)
        n_prompts, n_sample = int(counts["n"].sum()), counts.filter("is_sample")["n"].sum()
        alike = "length and template" if centering == "template" else "length"
        return (
            f"{self._task}: {missed['n'].sum():,} of {counted(n_prompts, 'prompt')} will have no centred norm. "
            f"It takes {MIN_PROMPTS} prompts of their {alike}, or longer, among the {n_sample:,} calibration prompts:\n"
            f"{listed([_reason(*row) for row in missed.iter_rows()])}"
        )

    def _grouped(self, centering: Centering) -> pl.DataFrame:
        group = pl.col("template") if centering == "template" else pl.lit("")
        return pl.concat(self._counts).with_columns(group=group)


def _reason(template: str, length: int, count: int, reach: int) -> str:
    whose = f"template {template!r}, " if template else ""
    limit = f"enough up to {reach} tokens" if reach else "too few of any length"
    return f"{whose}{length} tokens: {counted(count, 'prompt')} ({limit})"
