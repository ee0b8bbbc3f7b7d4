"""Definitions against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from gbcd import wrong_answers
from gbcd.engine.engine import loss_gradient
from gbcd.wrong_answers import LossContext
from gbcd.wrong_answers.losses import TokenSet

#: Rows of very different length: what counts is their direction.
UNEMBEDDING = torch.tensor([[10.0, 0.0], [0.0, 1.0], [-3.0, -3.0], [-0.1, 0.0]])
LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0]])


def context(answers: TokenSet, wrong: TokenSet = (3,)) -> LossContext:
    return LossContext(LOGITS, [answers], [wrong], UNEMBEDDING, [(2,)])


@pytest.mark.parametrize(("answers", "farthest"), [((0,), 3), ((1,), 2), ((0, 1), 2)])
def test_most_dissimilar_of_a_set_is_farthest_from_its_mean_direction(answers: TokenSet, farthest: int) -> None:
    """Of {0, 1} it is (1/2, 1/2), with cosine -1 to row 2 and -0.71 to row 3; the mean of the rows would say 3."""
    target = wrong_answers.get("most_dissimilar").define(context(answers))
    assert target.tokens == [(farthest,)]


def test_losses_of_sets_are_of_their_total_probability() -> None:
    p = [math.exp(logit) for logit in LOGITS[0].tolist()]
    expected = {
        "margin": math.log((p[0] + p[1]) / (p[2] + p[3])),
        "logit_difference": math.log((p[0] + p[1]) / (p[2] + p[3])) ** 2,
        "foil": -math.log((p[2] + p[3]) / sum(p)),
        "most_dissimilar": -math.log(p[2] / sum(p)),
        "least_likely": -math.log(p[3] / sum(p)),
        "inverse_logits": -sum(
            (1 / one) / sum(1 / other for other in p) * math.log(one / sum(p)) for one in p
        ),
        "semantic": -math.log(p[2] / sum(p)),
        "right_answer": -math.log((p[0] + p[1]) / sum(p)),
    }  # fmt: skip
    assert list(expected) == wrong_answers.names()
    for name, value in expected.items():
        target = wrong_answers.get(name).define(context((0, 1), (2, 3)))
        losses, _ = loss_gradient(target, LOGITS.unsqueeze(1))
        assert losses.item() == pytest.approx(value), name


@pytest.mark.parametrize("name", wrong_answers.names())
def test_what_a_sign_says_is_how_the_loss_moves_with_the_logit_of_the_answer(name: str) -> None:
    wrong = 2 if name == "semantic" else 3
    said = {
        "works for the right answer": (0, 1),
        "works against the right answer": (0, -1),
        "works against the wrong answer": (wrong, -1),
        "makes the squared difference larger": (0, 1),
    }
    [(token, sign)] = [
        there for words, there in said.items() if f"above zero a component {words}, " in wrong_answers.sign_of(name)
    ]
    _, gradient = loss_gradient(wrong_answers.get(name).define(context((0,))), LOGITS.unsqueeze(1))
    assert math.copysign(1, gradient.flatten()[token].item()) == sign


def test_of_a_definition_that_says_nothing_a_sign_raises_or_lowers_the_loss() -> None:
    assert (
        wrong_answers.sign_of("of a file that is not loaded")
        == "above zero a component raises the loss, below zero it lowers it"
    )


def test_the_margin_is_the_metric_of_the_task() -> None:
    p = [math.exp(logit) / sum(math.exp(other) for other in LOGITS[0].tolist()) for logit in LOGITS[0].tolist()]
    expected = {
        "logit_difference": math.log((p[0] + p[1]) / (p[2] + p[3])),
        "probability_difference": p[0] + p[1] - p[2] - p[3],
        "negative_log_probability": math.log(p[0] + p[1]),
    }
    for metric, value in expected.items():
        target = wrong_answers.get("margin").define(context((0, 1), (2, 3))._replace(metric=metric))
        losses, gradient = loss_gradient(target, LOGITS.unsqueeze(1))
        assert losses.item() == pytest.approx(value)
        assert gradient.sum().item() == pytest.approx(0.0, abs=1e-6)  # none of them sees a shift of all logits
