"""Every family: each statistic of each part against the oracle; what a family's file does not know is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle_values import check, engine_values, exact_calibration, loaded_model, mixed_prompts, oracle_values
from random_prompts import VOCAB, random_prompts
from tiny_models import CONTEXT, FAMILIES, random_model, randomised, small_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, Phi3Config, SmolLM3Config

from gbcd.engine.engine import Engine
from gbcd.engine.oracle import Oracle
from gbcd.errors import BadInput
from gbcd.models import families
from gbcd.models.families import Family, gpt2
from gbcd.models.load import prepared


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("dtype", "tolerance", "name", "centering"),
    [
        (torch.float64, 1e-10, "logit_difference", "template"),
        (torch.float64, 1e-10, "inverse_logits", "position"),
        (torch.float32, 1e-4, "logit_difference", "position"),
        (torch.float32, 1e-4, "inverse_logits", "template"),
    ],
    ids=["twin-float64", "alone-float64", "twin-float32", "alone-float32"],
)
def test_every_statistic_of_every_part_equals_the_oracle(family, dtype, tolerance, name, centering):
    loaded, prompts = loaded_model(family, dtype), mixed_prompts((7, 5, 7, 4))
    sample = [
        replace(one, prompt=replace(one.prompt, id=f"sample/{one.prompt.id}"))
        for one in random_prompts((7, 7, 7, 7, 5, 5), 9)
    ]
    if name == "inverse_logits":  # of a pair, the mean of the others is not one sequence
        sample += prompts
    calibration = exact_calibration(Oracle(loaded), sample, centering)
    found = engine_values(Engine(loaded, [name], calibration), prompts)
    check(found, oracle_values(loaded, prompts, name, sample, centering), loaded, tolerance)


def test_a_weight_that_no_part_claims_is_refused_by_name():
    model = random_model("qwen2", VOCAB)
    model.model.layers[1].mlp.adapter = nn.Linear(24, 24)
    with pytest.raises(BadInput, match=r"weights that no part claims.*\n.*model.layers.1.mlp.adapter.weight"):
        prepared("tiny", model, small_tokenizer())


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("gpt2", {"add_cross_attention": True}),
        ("gpt2", {"position_schedule": "sliding"}),
        ("llama", {"attention_sink": 4}),
        ("gemma2", {"use_bidirectional_attention": True}),
        ("gemma3", {"use_bidirectional_attention": True}),
        ("opt", {"norm_first": True}),
        ("gpt_neox", {"gate": "sigmoid"}),
    ],
)
def test_a_value_of_the_configuration_that_nobody_has_read_is_refused_by_name(family, config):
    model = random_model(family, VOCAB)
    ((key, value),) = config.items()
    setattr(model.config, key, value)
    with pytest.raises(BadInput, match=rf"does not know, so its results could be wrong:\n.*{key} = {value!r}"):
        prepared("tiny", model, small_tokenizer())


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        ("opt", {"do_layer_norm_before": False}, "OPT-350m"),
        ("opt", {"layer_norm_elementwise_affine": False}, "norms without weights"),
        ("gpt2", {"activation_function": "gelu_10"}, "activation 'gelu_10' is not known; known: gelu, "),
    ],
)
def test_a_relative_that_the_decoder_cannot_run_is_refused(family, config, message):
    with pytest.raises(BadInput, match=message):
        prepared("tiny", random_model(family, VOCAB, **config), small_tokenizer())


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("gpt2", {"scale_attn_weights": False}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("gpt2", {"activation_function": "relu"}),
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}}),
        ("mistral", {"sliding_window": CONTEXT}),
        ("gemma2", {"sliding_window": CONTEXT}),
        ("gemma2", {"attn_logit_softcapping": None}),
        ("gemma2", {"final_logit_softcapping": None}),
        ("gemma2", {"query_pre_attn_scalar": 2}),
        ("gemma3", {"sliding_window": CONTEXT}),
        ("gemma3", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
        ("gpt_neox", {"use_parallel_residual": False}),
        ("opt", {"activation_function": "gelu"}),
    ],
)
def test_a_known_value_changes_the_library_and_the_decoder_alike(family, config):
    """The library takes any word in a configuration: with one that it does not know, the oracle would test nothing."""
    prompt = random_prompts((11,), 5)[0]
    logits = []
    for changed in ({}, config):
        loaded = loaded_model(family, **changed)
        logits.append(loaded.model(input_ids=torch.tensor([prompt.ids])).logits[0, -1])
        run = loaded.decoder.run(Engine(loaded, []).pack([(prompt.ids,)]))
        torch.testing.assert_close(run.logits[0, 0], logits[-1], rtol=1e-5, atol=1e-5)
    assert (logits[0] - logits[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("family", "weight", "idle"),
    [
        ("llama", "self_attn.o_proj.bias", 0.0),
        ("llama", "mlp.gate_proj.bias", 0.0),
        ("qwen2", "self_attn.q_proj.bias", 0.0),
        ("qwen3", "self_attn.q_norm.weight", 1.0),
        ("qwen3", "self_attn.k_norm.weight", 1.0),
        ("gemma3", "self_attn.k_norm.weight", 0.0),
        ("gemma2", "post_feedforward_layernorm.weight", 0.0),
    ],
)
def test_biases_and_norms_of_queries_and_keys_are_there_and_count(family, weight, idle):
    model, ids = random_model(family, VOCAB, 1), torch.tensor([random_prompts((11,), 5)[0].ids])
    before = model(input_ids=ids).logits
    model.get_parameter(f"model.layers.1.{weight}").data.fill_(idle)
    assert (model(input_ids=ids).logits - before)[0, -1].abs().max() > 1e-4


def test_keys_and_values_belong_to_groups_only_where_heads_share_them():
    names = {family: [c.name for c in loaded_model(family).components] for family in ("llama", "llama_own_keys")}
    layer = [name for name in names["llama"] if name.startswith(("a1.", "m1.")) and "norm" not in name]
    heads = [f"a1.h{head}.{part}" for head in range(4) for part in "qo"]
    assert layer == [*heads, "a1.g0.k", "a1.g0.v", "a1.g1.k", "a1.g1.v", "m1.gate", "m1.up", "m1.down"]
    assert "a1.h3.k" in names["llama_own_keys"]
    assert not any(".g" in name and "gate" not in name for name in names["llama_own_keys"])
    loaded = loaded_model("llama")
    sizes = {component.name: component.n_params for component in loaded.components}
    assert sizes["a1.g0.k"] == sizes["a1.h0.q"] == 24 * 6
    weights = [p.numel() for name, p in loaded.model.named_parameters() if not name.endswith("bias")]
    assert sum(sizes.values()) == sum(weights)


@pytest.mark.parametrize(
    ("page", "heading", "family", "shape"),
    [
        ("AGENTS.md", "**Add an architecture**", SmolLM3Config, {"no_rope_layers": [1, 0]}),
        ("docs/architectures.md", "## Adding one", Phi3Config, {"original_max_position_embeddings": 64}),
    ],
    ids=["built like another", "built unlike any"],
)
def test_the_architecture_that_a_guide_adds_works(page, heading, family, shape, monkeypatch):
    """The code of the page, as it stands, makes a file for a model that the package does not know."""
    guide = (Path(__file__).parent.parent / page).read_text()
    code = re.findall(r"```python\n(.*?)```", guide[guide.index(heading) :], re.DOTALL)[0]
    added: dict[str, Any] = {}
    exec(code, added)
    config = family(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=40,
        vocab_size=VOCAB, max_position_embeddings=64, bos_token_id=0, eos_token_id=0, pad_token_id=None, **shape,
    )  # fmt: skip
    model = randomised(AutoModelForCausalLM.from_config(config)).double()
    with pytest.raises(BadInput, match=f"{type(model).__name__} is of no family that is supported"):
        prepared("tiny", model, small_tokenizer())
    new = Family("new", added["matches"], added["spec"], added["KNOWN"])
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, new))
    loaded, prompts = prepared("tiny", model, small_tokenizer()), mixed_prompts((6, 4, 6))
    found = engine_values(Engine(loaded, ["inverse_logits"]), prompts)
    check(found, oracle_values(loaded, prompts, "inverse_logits"), loaded, 1e-10)
    ids = torch.tensor([prompts[0].ids])
    wanted = model(input_ids=ids).logits[0, -1]
    torch.testing.assert_close(loaded.decoder.run(Engine(loaded, []).pack([(prompts[0].ids,)])).logits[0, 0], wanted,
                               rtol=1e-5, atol=1e-5)  # fmt: skip


class NoMlp(nn.Module):
    def forward(self, hidden):
        return torch.zeros_like(hidden)


def test_a_model_of_attention_alone_needs_only_a_spec_without_mlps(monkeypatch):
    model = random_model("gpt2", VOCAB)
    for block in model.transformer.h:
        block.ln_2, block.mlp = nn.Identity(), NoMlp()

    def spec(found):
        return replace(gpt2.spec(found), mlps=(None,) * len(found.transformer.h))

    alone = Family("attention only", gpt2.matches, spec, gpt2.KNOWN)
    monkeypatch.setattr(families, "FAMILIES", (alone,))
    loaded, prompts = prepared("tiny", model, small_tokenizer()), mixed_prompts((6, 4, 6))
    found = engine_values(Engine(loaded, ["foil"], edges=True), prompts)
    check(found, oracle_values(loaded, prompts, "foil"), loaded, 1e-10)
    assert {component.part for component in loaded.components if component.is_circuit_part} == set("qkvo")
