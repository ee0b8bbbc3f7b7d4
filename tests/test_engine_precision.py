"""Narrow types: what bfloat16 costs, and that norms do not add to it; and what a machine cannot do, named."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from gbcd.engine.part_norms import all_statistics
from gbcd.models.gpt2_pass import Gpt2Pass
from gbcd.models.hooked_pass import HookedPass
from gbcd.models.taps import LinearTap, ModelPass, Tap
from random_prompts import VOCAB, random_prompts
from test_engine_oracle import compare
from tiny_models import random_gpt2

from gbcd.engine.engine import Engine
from gbcd.errors import BadInput
from gbcd.models import load as models
from gbcd.models.load import LoadedModel, prepared

LENGTHS = (9, 6, 12, 9)


@pytest.fixture(scope="module")
def narrow() -> LoadedModel:
    return prepared("tiny", *random_gpt2(2, 2, 8, VOCAB, 0, torch.bfloat16))


@pytest.fixture(params=["own", "hooked"])
def model_pass(request: pytest.FixtureRequest, narrow: LoadedModel) -> ModelPass:
    return Gpt2Pass(narrow.model) if request.param == "own" else HookedPass(narrow.model, narrow.sites)


def test_bfloat16_is_near_the_oracle_of_the_same_weights(narrow: LoadedModel, model_pass: ModelPass) -> None:
    prompts = random_prompts(LENGTHS)
    calibration = Engine(narrow, [], 8).calibrate(random_prompts(LENGTHS * 6, seed=1))
    compared = compare(narrow, model_pass, prompts, "inverse_logits", calibration)
    for statistic in ("squares", "centered_squares"):
        found = getattr(compared.engine, statistic).double().clamp(min=0).sqrt()
        expected = compared.expected[statistic].sqrt()
        error = (found - expected).abs() / expected.clamp(min=1e-2 * float(expected.max()))
        assert float(error.median()) < 0.01
        assert float(error.max()) < 0.15


def test_norms_of_bfloat16_taps_are_those_of_the_tensors_in_float64(narrow: LoadedModel, model_pass: ModelPass) -> None:
    units = [(prompt.ids,) for prompt in random_prompts(LENGTHS)]
    forward = model_pass.forward(units)
    taps = list(forward.backward(torch.randn(forward.logits.shape).bfloat16()))
    norms = all_statistics(iter(taps), narrow.components, len(units), None)
    assert norms.squares.dtype == torch.float32
    column = {component.name: index for index, component in enumerate(narrow.components)}
    for tap, name, gradient in formed(taps):
        assert tap.d.dtype == torch.bfloat16
        squares = gradient.square().sum((1, 2))
        torch.testing.assert_close(norms.squares[:, column[name]].double(), squares, rtol=1e-4, atol=0)
        summed = gradient.sum(0).square().sum()
        torch.testing.assert_close(norms.summed_squares[column[name]].double(), summed, rtol=1e-4, atol=0)


def formed(taps: list[Tap]) -> Iterator[tuple[LinearTap, str, torch.Tensor]]:
    """Every slice of every linear map with its gradient by prompt, formed in float64."""
    for tap in taps:
        if isinstance(tap, LinearTap):
            gradients = tap.input.x.double().transpose(1, 2) @ tap.d.double()
            pieces = gradients.chunk(len(tap.components), 2 if tap.axis == "out" else 1)
            yield from ((tap, name, piece) for name, piece in zip(tap.components, pieces, strict=True))


@pytest.mark.parametrize("device", ["cuda:99", "mps", "tape"])
def test_a_device_that_is_not_here_is_named(device: str) -> None:
    with pytest.raises(BadInput, match=f"device '{device}' with dtype float32 cannot be used here"):
        models.resolve_device(device, "float32")


def test_a_type_that_the_device_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_float64(*size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        raise TypeError(f"Cannot convert a {device.type} tensor to {dtype}")

    monkeypatch.setattr(torch, "empty", without_float64)
    with pytest.raises(BadInput, match=r"dtype float64 cannot be used here: Cannot convert a cpu tensor"):
        models.resolve_device("cpu", "float64")


def test_sure_heads_keep_their_gradients_in_bfloat16() -> None:
    model, tokenizer = random_gpt2(2, 2, 8, VOCAB, 0)
    for block in model.transformer.h:
        block.attn.c_attn.weight.data *= 3
    sure = prepared("tiny", model.to(torch.bfloat16), tokenizer)
    compared = compare(sure, Gpt2Pass(sure.model), random_prompts(LENGTHS), "inverse_logits", None)
    error = compared.engine.squares.double().sqrt() / compared.expected["squares"].sqrt() - 1
    reading = [index for index, component in enumerate(sure.components) if component.part in ("q", "k")]
    # with scores and patterns in bfloat16 it is 3
    assert float(error[:, reading].abs().max()) < 1
