"""A definition of one's own reaches workers, which are processes that have imported gbcd alone."""

from __future__ import annotations

import pytest
from ray import cloudpickle

from gbcd import wrong_answers
from gbcd.errors import BadInput
from gbcd.job.own_definitions import with_definitions
from gbcd.job.workers import build_engine
from gbcd.wrong_answers import Scene, wrong_answer
from gbcd.wrong_answers.losses import TowardsTokens


def first_token(scene: Scene) -> TowardsTokens:
    """Cross-entropy towards the first token of the vocabulary."""
    return TowardsTokens([(0,)] * len(scene.answers))


def test_a_definition_of_ones_own_is_known_where_the_engine_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrong_answers, "_REGISTRY", dict(wrong_answers._REGISTRY))  # pyright: ignore
    wrong_answer("first_token")(first_token)
    build = with_definitions(build_engine, ["foil", "first_token"])
    sent = cloudpickle.dumps(build)
    del wrong_answers._REGISTRY["first_token"]  # pyright: ignore
    with pytest.raises(BadInput, match="first_token"):
        wrong_answers.get("first_token")
    cloudpickle.loads(sent).know()
    assert wrong_answers.get("first_token").summary.startswith("Cross-entropy")


def test_gbcds_own_definitions_need_no_sending() -> None:
    assert with_definitions(build_engine, ["foil", "inverse_logits"]) is build_engine
