from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gbcd.engine.tables import COHERENCE, FAILED, OK, PROMPTS, STATISTICS, ShardTables, norms_schema
from gbcd.prompting.prompt import Prompt
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.run.shard_files import Expected, check
from gbcd.run.shards import Shard
from gbcd.run.sifting import sifted

WRONG_ANSWERS = ("foil", "least_likely")


def prompt(number: int) -> EncodedPrompt:
    one = Prompt(f"p{number}", "ioi", "t", f"text {number}", (" a", " b"), (" c",))
    return EncodedPrompt(one, (1, 2, 3), (4,), (5,), None, None)


class Poisoned:
    """Gives every prompt rows of ones, and raises on some; once it has broken down it may raise for good."""

    def __init__(self, poison: set[int], stays_broken: bool = False) -> None:
        self._poison = {f"p{number}" for number in poison}
        self._stays_broken, self._is_broken = stays_broken, False

    def compute(self, prompts: Sequence[EncodedPrompt]) -> ShardTables:
        ids = [one.prompt.id for one in prompts]
        if self._is_broken or self._poison & set(ids):
            self._is_broken = self._stays_broken
            raise ArithmeticError("poison")
        rows = [
            {"prompt_id": name, "wrong_answer": wrong, "status": OK, **{key: [1.0, 1.0] for key in STATISTICS}}
            for wrong in WRONG_ANSWERS
            for name in ids
        ]
        tables = (pa.Table.from_pylist(rows, schema=schema) for schema in (PROMPTS, norms_schema(2)))
        return ShardTables(*tables, COHERENCE.empty_table())


@given(st.sets(st.integers(0, 5), max_size=5))
def test_exactly_the_prompts_that_fail_are_without_values(poison: set[int]) -> None:
    prompts = [prompt(number) for number in range(6)]
    found = sifted(Poisoned(poison), prompts, WRONG_ANSWERS)
    assert found.failed == {f"p{number}": "ArithmeticError: poison" for number in poison}
    ids = [one.prompt.id for one in prompts]
    check(Shard(id=0, task="ioi", start=0, stop=6), found.tables, Expected(ids, WRONG_ANSWERS, 2))
    failed = [row for row in found.tables.prompts.to_pylist() if row["status"] == FAILED]
    assert {(row["prompt_id"], row["wrong_answer"]) for row in failed} == {
        (name, wrong) for name in found.failed for wrong in WRONG_ANSWERS
    }
    for row in failed:
        assert (row["prompt"], row["answer"], row["n_tokens"]) == (f"text {row['prompt_id'][1:]}", " a| b", 3)
        assert row["loss"] is row["correct"] is row["answer_logit"] is None


@pytest.mark.parametrize(
    "engine", [Poisoned(set(range(6))), Poisoned({3}, stays_broken=True), Poisoned({0}, stays_broken=True)]
)
def test_where_no_single_prompt_is_to_blame_the_shard_fails(engine: Poisoned) -> None:
    with pytest.raises(ArithmeticError, match="poison"):
        sifted(engine, [prompt(number) for number in range(6)], WRONG_ANSWERS)
