"""The last try at a shard that keeps failing: find the prompts that it fails on, and give the rows of all others.

Each prompt is computed alone; those that fail so are set aside, and the rest is computed together as any shard is. Rows
of the others agree with those of an undisturbed run to rounding: batches are cut from fewer prompts, so sums are taken
in another order; coherence is that of these batches, which are random draws all the same. Where all prompts fail, or
none does alone, no single one is to blame, and the shard fails as a whole. So it does where one failure makes all later
ones follow, as on a GPU that is left unusable: the computation of the rest is the test of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol, runtime_checkable

import pyarrow as pa

from gbcd.engine.tables import FAILED, ShardTables
from gbcd.prompting.tokens import EncodedPrompt

Rows = list[dict[str, str | int]]


@runtime_checkable
class Computes(Protocol):
    """What is needed of the gradient engine."""

    def compute(self, prompts: Sequence[EncodedPrompt]) -> ShardTables:
        """Tables of some prompts."""
        ...


class Sifted(NamedTuple):
    """Tables of a whole shard, and by prompt the reason for those whose rows hold no values."""

    tables: ShardTables
    failed: dict[str, str]


def sifted(engine: Computes, prompts: Sequence[EncodedPrompt], wrong_answers: Sequence[str]) -> Sifted:
    """Compute a shard, if need be without the prompts that fail.

    Raises:
        Exception: whatever the engine raises where no single prompt is to blame.
    """
    with suppress(Exception):
        return Sifted(engine.compute(prompts), {})
    failed = {one.prompt.id: reason for one in prompts if (reason := _failure(engine, one)) is not None}
    good = [one for one in prompts if one.prompt.id not in failed]
    if not failed or not good:
        return Sifted(engine.compute(prompts), {})
    bad = [one for one in prompts if one.prompt.id in failed]
    computed, rows = engine.compute(good), _rows(bad, wrong_answers)
    tables = ShardTables(
        prompts=_with_rows(computed.prompts, rows),
        norms=_with_rows(computed.norms, rows),
        coherence=computed.coherence,
    )
    return Sifted(tables, failed)


def in_words(error: Exception) -> str:
    """What went wrong, as it is recorded."""
    return f"{type(error).__name__}: {error}"


def _failure(engine: Computes, prompt: EncodedPrompt) -> str | None:
    try:
        engine.compute([prompt])
    except Exception as error:
        return in_words(error)
    return None


def _with_rows(table: pa.Table, rows: Rows) -> pa.Table:
    """`table` and, after it, `rows`, null in every column that they do not name."""
    return pa.concat_tables([table, pa.Table.from_pylist(rows, schema=table.schema)])


def _rows(prompts: Sequence[EncodedPrompt], wrong_answers: Sequence[str]) -> Rows:
    return [
        {
            "prompt_id": one.prompt.id,
            "task": one.prompt.task,
            "template": one.prompt.template,
            "prompt": one.prompt.text,
            "answer": "|".join(one.prompt.answers),
            "wrong_answer": wrong_answer,
            "n_tokens": len(one.ids),
            "status": FAILED,
        }
        for wrong_answer in wrong_answers
        for one in prompts
    ]
