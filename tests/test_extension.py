"""A task and a wrong answer from outside the package, a few lines each, run together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_runs import finished, small_study

import gbcd
from gbcd import wrong_answers
from gbcd.errors import BadInput
from gbcd.tasks import Family, Filled, Slot, task
from gbcd.tasks import _registry as task_registry
from gbcd.wrong_answers.losses import TowardsTokens


@pytest.fixture(autouse=True)
def toys() -> Iterator[None]:
    @task("colours", metric="logit_difference")
    def colours(vocabulary):  # pyright: ignore
        """The colour of a thing."""
        names = vocabulary.single(["Aaron", "Alan", "Albert"], "names")
        yield Family(
            "is", [Slot("name", names)], lambda words, rng: Filled(f"{words['name']} saw the", (" table",), (" door",))
        )

    @wrong_answers.wrong_answer("second_choice")
    def second_choice(context):  # pyright: ignore
        """Cross-entropy towards the model's second choice."""
        return TowardsTokens([(int(token),) for token in torch.topk(context.logits, 2).indices[:, 1]])

    yield
    del task_registry._tasks["colours"], wrong_answers._REGISTRY["second_choice"]


def test_both_run_and_leave_rows(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    study = small_study(tmp_path, tasks=("colours",), prompts_per_task=3, wrong_answers=("second_choice",))
    assert finished(study).missing == ()
    rows = gbcd.prompts(out).collect()
    assert sorted(rows["prompt"]) == ["Aaron saw the", "Alan saw the", "Albert saw the"]
    assert set(rows["wrong_answer"]) == {"second_choice"}
    assert (rows["wrong_logit"] < rows["wrong_logit"].max() + 1).all()
    assert gbcd.scan(out).collect().height == 3 * gbcd.components(out).collect().height


def test_a_task_that_gives_a_prompt_twice_is_refused(tmp_path: Path) -> None:
    @task("twice", metric="logit_difference")
    def twice(vocabulary):  # pyright: ignore
        """One text, whichever word is drawn."""
        yield Family("same", [Slot("name", ["Aaron", "Alan"])], lambda words, rng: Filled("Aaron saw", (" table",)))

    try:
        study = small_study(tmp_path, tasks=("twice",), prompts_per_task=2, wrong_answers=("right_answer",))
        with pytest.raises(BadInput, match="'same' and 'same' of task 'twice' give the same prompt, 'Aaron saw'"):
            finished(study)
        assert not (tmp_path / "out").exists()
    finally:
        del task_registry._tasks["twice"]
