"""Every architecture: the hooked pass against the oracle and the library, padding, batches, refusals."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from random_prompts import VOCAB, random_prompts
from test_engine_oracle import check, compare
from tiny_models import CONTEXT, FAMILIES, random_model, randomised, small_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, Phi3Config, SmolLM3Config

from gbcd import models as architectures
from gbcd.engine.engine import Engine
from gbcd.engine.oracle import Oracle
from gbcd.errors import BadInput
from gbcd.evaluation.edges import can_score_edges
from gbcd.models import gpt2
from gbcd.models.hooked_pass import HookedPass
from gbcd.models.load import LoadedModel, prepared


def loaded_model(family: str, dtype: torch.dtype = torch.float64, **config: object) -> LoadedModel:
    return prepared("tiny", random_model(family, VOCAB, 1, dtype, **config), small_tokenizer())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("dtype", "tolerance", "name", "centering"),
    [(torch.float64, 1e-5, "logit_difference", "template"), (torch.float32, 1e-4, "inverse_logits", "position")],
)
def test_every_statistic_of_every_part_equals_the_oracle(family, dtype, tolerance, name, centering):
    loaded = loaded_model(family, dtype)
    # of each length several, and of each template: centred at a mean over one prompt nothing is left but rounding
    prompts = random_prompts((7, 7, 7, 7) if centering == "template" else (7, 7, 4, 4), 3)
    model_pass = HookedPass(loaded.model, loaded.sites)
    engine = Engine(loaded, [name], batch_size=3)
    engine._pass = model_pass
    compared = compare(loaded, model_pass, prompts, name, engine.calibrate(prompts, centering))
    names = [component.name for component in loaded.components]
    # where a norm follows, scaling the weights changes nothing: Taylor scores cancel, so their terms are the measure
    weights = Oracle(loaded).weights()
    scale = compared.expected["squares"].sqrt() * torch.stack([weights[part].norm() for part in names])
    taylor = compared.expected.pop("taylor")
    assert float(((compared.engine.taylor - taylor).abs() / scale.clamp(min=1e-12)).max()) < tolerance
    check(compared, names, tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_librarys_and_no_neighbour_changes_a_row(family):
    loaded = loaded_model(family)
    prompts = random_prompts((7, 3, 11), 5)
    model_pass = HookedPass(loaded.model, loaded.sites)
    logits = model_pass.forward([(prompt.ids,) for prompt in prompts]).logits[:, 0]
    for prompt, row in zip(prompts, logits, strict=True):
        wanted = loaded.model(input_ids=torch.tensor([prompt.ids])).logits[0, -1]
        torch.testing.assert_close(row, wanted, rtol=1e-6, atol=1e-6)
    together = Engine(loaded, ["inverse_logits"], 3).compute(prompts).norms
    alone = Engine(loaded, ["inverse_logits"], 1).compute(prompts).norms
    for statistic in ("grad_norm", "taylor"):
        found, wanted = (torch.tensor(table[statistic].to_pylist()) for table in (together, alone))
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_weight_that_no_file_claims_is_refused_by_name():
    model = random_model("qwen2", VOCAB)
    model.model.layers[1].mlp.adapter = nn.Linear(24, 24)
    with pytest.raises(BadInput, match=r"weights that no site taps.*\n.*model.layers.1.mlp.adapter.weight"):
        prepared("tiny", model, small_tokenizer())


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("opt", {"do_layer_norm_before": False}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("gemma3", {"use_bidirectional_attention": True}),
    ],
)
def test_a_relative_that_the_familys_file_does_not_describe_is_refused(family, config):
    model = random_model(family, VOCAB, **config)
    name = type(model).__name__
    with pytest.raises(BadInput, match=f"no architecture file knows {name}; known architectures: gpt2, llama"):
        prepared("tiny", model, small_tokenizer())


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("mistral", {"sliding_window": CONTEXT}),
        ("gemma2", {"sliding_window": CONTEXT}),
        ("gemma2", {"attn_logit_softcapping": None}),
        ("gemma2", {"final_logit_softcapping": None}),
        ("gemma2", {"query_pre_attn_scalar": 2}),
        ("gemma3", {"sliding_window": CONTEXT}),
        ("gpt_neox", {"use_parallel_residual": False}),
    ],
)
def test_what_a_family_is_known_for_shows_in_the_models_that_it_is_tested_with(family, config):
    """The library takes any word in a configuration: with one that it does not know, the oracle would test nothing."""
    ids = torch.tensor([random_prompts((11,), 5)[0].ids])
    with_it, without = (random_model(family, VOCAB, 1, **changed)(input_ids=ids).logits for changed in ({}, config))
    assert (with_it - without)[0, -1].abs().max() > 1e-3


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
    sizes = {c.name: c.n_params for c in architectures.components(loaded.model, loaded.sites)}
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
    with pytest.raises(BadInput, match=f"no architecture file knows {type(model).__name__}"):
        prepared("tiny", model, small_tokenizer())
    new = architectures.Architecture("new", added["matches"], added["sites"])
    monkeypatch.setattr(architectures, "ARCHITECTURES", (*architectures.ARCHITECTURES, new))
    loaded = prepared("tiny", model, small_tokenizer())
    compared = compare(
        loaded, HookedPass(model, loaded.sites), random_prompts((6, 4, 6), 1), "inverse_logits", calibration=None
    )
    check(compared, [component.name for component in loaded.components], 1e-4)


class NoMlp(nn.Module):
    def forward(self, hidden):
        return torch.zeros_like(hidden)


def test_a_model_of_attention_alone_needs_only_a_file_that_lists_no_mlps(monkeypatch):
    model = random_model("gpt2", VOCAB)
    for block in model.transformer.h:
        block.ln_2, block.mlp = nn.Identity(), NoMlp()
    with_mlps = gpt2.sites(model.config)
    alone = replace(
        with_mlps,
        linear=tuple(site for site in with_mlps.linear if site.input[0] == "a"),
        gains=tuple(gain for gain in with_mlps.gains if gain.component[0] != "m"),
    )
    files = (architectures.Architecture("attention only", gpt2.matches, lambda config: alone),)
    monkeypatch.setattr(architectures, "ARCHITECTURES", files)
    loaded = prepared("tiny", model, small_tokenizer())
    model_pass = HookedPass(model, loaded.sites)
    prompts = random_prompts((6, 4, 6), 1)
    check(compare(loaded, model_pass, prompts, "foil", None), [c.name for c in loaded.components], 1e-6)
    assert {component.part for component in loaded.components if component.is_circuit_part} == set("qkvo")
    assert not can_score_edges(loaded)
