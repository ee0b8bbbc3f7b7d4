"""Narrow types: what bfloat16 costs, and that norms do not add to it; and what a machine cannot do, named."""

from __future__ import annotations

import pytest
import torch
from oracle_values import engine_values, mixed_prompts, oracle_values
from random_prompts import VOCAB
from tiny_models import random_gpt2, random_model, small_tokenizer

from gbcd.engine.engine import Engine, packed_for
from gbcd.engine.scores import ScoreTable
from gbcd.errors import BadInput
from gbcd.models import load as models
from gbcd.models.captured import Gradient, MapGradient
from gbcd.models.forward import Options
from gbcd.models.load import LoadedModel, prepared

LENGTHS = (9, 6, 12, 9)


@pytest.fixture(scope="module", params=["gpt2", "qwen3"])
def narrow(request: pytest.FixtureRequest) -> LoadedModel:
    if request.param == "gpt2":
        return prepared("tiny", *random_gpt2(2, 2, 8, VOCAB, 0, torch.bfloat16))
    return prepared("tiny", random_model("qwen3", VOCAB, 0, torch.bfloat16), small_tokenizer())


def test_bfloat16_is_near_the_oracle_of_the_same_weights(narrow: LoadedModel) -> None:
    prompts = mixed_prompts(LENGTHS)
    engine = Engine(narrow, ["inverse_logits"])
    sample = mixed_prompts(LENGTHS * 6, seed=1)
    sample = [one for one in sample if one.prompt.id not in {prompt.prompt.id for prompt in prompts}]
    found = engine_values(Engine(narrow, ["inverse_logits"], engine.calibrate(sample)), prompts).statistics
    expected = oracle_values(narrow, prompts, "inverse_logits", sample).statistics
    for statistic in ("grad_norm", "centered_grad_norm", "contrast_norm"):
        wanted = expected[statistic]
        error = (found[statistic] - wanted).abs() / wanted.clamp(min=1e-2 * float(wanted.max()))
        assert float(error.median()) < 0.02, statistic
        assert float(error.max()) < 0.25, statistic


def test_statistics_of_captured_bfloat16_are_those_of_the_tensors_in_float64(narrow: LoadedModel) -> None:
    prompts = mixed_prompts(LENGTHS)
    packed = packed_for(narrow, [(prompt.ids,) for prompt in prompts])
    run = narrow.decoder.run(packed, Options(graph=True))
    table = ScoreTable(narrow.components, len(prompts), {})
    column = {component.name: index for index, component in enumerate(narrow.components)}
    kept: list[MapGradient] = []

    def receive(gradient: Gradient) -> None:
        table(gradient)
        if isinstance(gradient, MapGradient):
            kept.append(gradient)

    run.backward(torch.randn(run.logits.shape, generator=torch.Generator().manual_seed(0)).bfloat16(), receive)
    found = table.values()
    assert found["grad_norm"].dtype == torch.float32
    assert len(kept) >= 8
    for one in kept:
        assert one.d_output.dtype == torch.bfloat16
        x, d = one.input.x.double(), one.d_output.double()
        gradients = (x.transpose(1, 2) @ d).chunk(len(one.components), 2 if one.axis == "out" else 1)
        for name, gradient in zip(one.components, gradients, strict=True):
            values = found["grad_norm"][:, column[name]].double()
            # a map that is two (queries at the answers alone) gives each part once
            torch.testing.assert_close(values, gradient.square().sum((1, 2)).sqrt(), rtol=1e-4, atol=0)


def test_sure_heads_keep_their_gradients_in_bfloat16() -> None:
    model, tokenizer = random_gpt2(2, 2, 8, VOCAB, 0)
    for block in model.transformer.h:
        block.attn.c_attn.weight.data *= 3
    sure, prompts = prepared("tiny", model.to(torch.bfloat16), tokenizer), mixed_prompts(LENGTHS)
    found = engine_values(Engine(sure, ["inverse_logits"]), prompts).statistics["grad_norm"]
    error = found / oracle_values(sure, prompts, "inverse_logits").statistics["grad_norm"] - 1
    reading = [index for index, component in enumerate(sure.components) if component.part in ("q", "k")]
    # with scores and patterns in bfloat16 it is 3
    assert float(error[:, reading].abs().max()) < 1


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
