"""A model proves itself: what passes, what is refused, and how little of a large model is copied."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from oracle_values import loaded_model
from random_prompts import VOCAB
from tiny_models import CONTEXT, FAMILIES, random_model, small_tokenizer

from gbcd.engine import self_check as module
from gbcd.engine.proof import SelfCheck
from gbcd.engine.self_check import first_blocks, self_check
from gbcd.errors import BadInput
from gbcd.models.load import LoadedModel, load, prepared
from gbcd.models.pieces import Norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_proves_itself(family, dtype):
    found = self_check(loaded_model(family, dtype))
    assert found.logits < (1e-5 if dtype == torch.float32 else 0.3)
    assert found.norms < 1e-5
    assert found.n_blocks == 3


@pytest.mark.parametrize("name", ["tracr_xproportion", "tracr_reverse"])
def test_compiled_programs_prove_themselves(name):
    found = self_check(load(name, "cpu"))
    assert found.logits < 1e-6
    assert found.norms < 1e-5


def other_scale(spec):
    return {"attentions": tuple(replace(one, scale=one.scale * 1.05) for one in spec.attentions)}


def other_activation(spec):
    return {"mlps": tuple(replace(one, activation="gelu") for one in spec.mlps)}


def no_rotation_in_one_block(spec):
    return {"attentions": (*spec.attentions[:2], replace(spec.attentions[2], rotary=None))}


@pytest.mark.parametrize("fault", [other_scale, other_activation, no_rotation_in_one_block])
def test_a_decoder_that_computes_something_else_is_refused(fault):
    loaded = loaded_model("llama", torch.float32)
    wrong = LoadedModel("mine", loaded.model, loaded.tokenizer, replace(loaded.spec, **fault(loaded.spec)))
    with pytest.raises(BadInput, match=r"does not run 'mine' as the library does: logits differ by .*this llama's"):
        self_check(wrong)


def test_a_gradient_that_is_wrong_behind_right_logits_is_refused(monkeypatch):
    loaded, back = loaded_model("llama", torch.float32), Norm.back
    monkeypatch.setattr(Norm, "back", lambda self, d, x, mean, rstd, fixed: back(self, d, x, mean, rstd, True))
    with pytest.raises(BadInput, match=r"the norm of \S+ differs by [\d.]+ of itself from float64 autograd"):
        self_check(loaded)


def test_logits_that_are_no_numbers_are_refused():
    loaded = loaded_model("llama", torch.float32)
    loaded.model.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(BadInput, match="logits differ by nan"):
        self_check(loaded)


def test_of_a_large_model_the_first_blocks_of_every_kind_and_few_tokens_are_copied(monkeypatch):
    monkeypatch.setattr(module, "MOST_WEIGHTS", 1)
    monkeypatch.setattr(module, "VOCABULARY", 20)
    model = random_model("gemma3", VOCAB, 0, torch.bfloat16)  # sliding, full, sliding
    loaded = prepared("large", model, small_tokenizer())
    small = first_blocks(loaded)
    assert small.spec.n_layers == 2
    assert small.model.get_input_embeddings().weight.shape == (20, 24)
    assert {tensor.dtype for tensor in small.model.parameters()} == {torch.float32}
    assert len(loaded.model.model.layers) == 3
    assert loaded.vocabulary_size == VOCAB
    assert {tensor.dtype for tensor in loaded.model.parameters()} == {torch.bfloat16}
    assert self_check(loaded).n_blocks == 2
    assert first_blocks(loaded_model("llama")).spec.n_layers == 1


def test_a_context_shorter_than_the_prompt_is_kept_to():
    assert isinstance(self_check(loaded_model("gpt2", torch.float32, n_positions=5)), SelfCheck)
    assert CONTEXT > module.LENGTH
