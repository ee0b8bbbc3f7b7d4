"""What a plan stores of its prompts is what was tokenised."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from random_prompts import random_prompts
from small_runs import small_study
from tiny_models import small_tokenizer

from gbcd.prompting.outputs import OutputAnswer
from gbcd.prompting.tokens import encode
from gbcd.run.inputs import Inputs, InputsWriter, table_of
from gbcd.run.planning import open_plan
from gbcd.run.shards import Plan, Shard
from gbcd.run.store import Store
from gbcd.tasks import draw


def test_prompts_come_back_with_every_token(tmp_path: Path) -> None:
    bare, full, compiled = random_prompts([5, 6, 7])
    bare = replace(bare, twin_ids=None)
    full = replace(full, counterfactual_ids=(1, 2), partner_ids=(1, 2, 3, 4, 5, 6), partner_id="p9", farthest_ids=(7,))
    compiled = replace(compiled, answer_ids=(), wrong_ids=(), outputs=OutputAnswer((0.5, 1.0), ()))
    planned = open_plan(small_study(tmp_path))
    with InputsWriter() as writer:
        writer.add(table_of([bare, full], [1, 0]))
        writer.add(table_of([compiled], [2]))
        stored = writer.publish(Store(str(tmp_path / "out")))
    shards = (Shard(id=0, task="p", start=0, stop=2), Shard(id=1, task="p", start=2, stop=3))
    plan = Plan.model_construct(**{**dict(planned.plan), "inputs": stored, "shards": shards})
    inputs = Inputs(Store(str(tmp_path / "out")), plan)
    assert [inputs.read(shard) for shard in shards] == [[bare, full], [compiled]]
    assert inputs.sample("p", 2) == [full, bare]
    assert inputs.ids(shards[0]) == [bare.prompt.id, full.prompt.id]


def test_a_plan_stores_the_tokens_that_the_tokenizer_gives(tmp_path: Path) -> None:
    planned = open_plan(small_study(tmp_path))
    inputs = Inputs(planned.store, planned.plan)
    stored = {one.prompt.id: one for shard in planned.plan.shards for one in inputs.read(shard)}
    tokenizer = small_tokenizer()
    for one in encode(draw("ioi", tokenizer, 40, 0), tokenizer):
        assert replace(stored[one.prompt.id], partner_ids=None, partner_id=None) == one
