"""Ablation, patching and direct effects on every architecture, against hooks of torch placed by hand."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from evaluation_cases import baselines_of, context_of, effects_of
from random_prompts import VOCAB
from tiny_models import FAMILIES, random_model, small_tokenizer
from torch import nn

from gbcd.evaluation.metrics import metric_for
from gbcd.evaluation.places import places_of
from gbcd.models.load import prepared
from gbcd.prompting.prompt import Prompt
from gbcd.prompting.tokens import EncodedPrompt

HEADS = 4


class Place(NamedTuple):
    """A module, whether its input is meant, and the slice of the last dimension."""

    module: nn.Module
    is_input: bool
    chosen: slice


def place(family: str, model, name: str) -> Place:
    kind, *rest = name.split(".")
    number = int(rest[0][1:]) if rest and kind[0] == "a" else 0
    part = rest[-1] if rest and rest[-1] in ("q", "k", "v", "o", "in", "gate", "up", "out", "down") else None
    layer = int(kind[1:])
    everything = slice(None)
    if family == "gpt2":
        block = model.transformer.h[layer]
        attention = {"qkv": block.attn.c_attn, "o": block.attn.c_proj}
        mlp = {"in": block.mlp.c_fc, "out": block.mlp.c_proj}
    elif family.startswith("gpt_neox"):
        block = model.gpt_neox.layers[layer]
        attention = {"qkv": block.attention.query_key_value, "o": block.attention.dense}
        mlp = {"in": block.mlp.dense_h_to_4h, "out": block.mlp.dense_4h_to_h}
    elif family == "opt":
        block = model.model.decoder.layers[layer]
        attention = {part: getattr(block.self_attn, f"{part}_proj") for part in "qkv"} | {"o": block.self_attn.out_proj}
        mlp = {"in": block.fc1, "out": block.fc2}
    else:
        block = model.model.layers[layer]
        attention = {part: getattr(block.self_attn, f"{part}_proj") for part in "qkvo"}
        mlp = {part: getattr(block.mlp, f"{part}_proj") for part in ("gate", "up", "down")}
    if kind[0] == "m":
        return Place(mlp[part or ("out" if "out" in mlp else "down")], False, everything)
    width = next(iter(reversed(attention.values()))).weight.shape[0 if family == "gpt2" else 1] // HEADS
    part = part or ("v" if rest[0][0] == "g" else "o")
    if part == "o":
        return Place(attention["o"], True, slice(number * width, (number + 1) * width))
    if "qkv" not in attention:
        return Place(attention[part], False, slice(number * width, (number + 1) * width))
    at = "qkv".index(part)
    start = (at * HEADS + number if family == "gpt2" else 3 * number + at) * width
    return Place(attention["qkv"], False, slice(start, start + width))


def value(model, ids, where: Place):
    kept = []
    if where.is_input:
        hook = where.module.register_forward_pre_hook(lambda _module, inputs: kept.append(inputs[0].clone()))
    else:
        hook = where.module.register_forward_hook(lambda _module, _inputs, output: kept.append(output.clone()))
    model(torch.tensor([ids]))
    hook.remove()
    return kept[0]


def difference(model, prompt, ids):
    logits = model(torch.tensor([ids])).logits[0, -1]
    return float(logits[prompt.answer_ids[0]] - logits[prompt.wrong_ids[0]])


def replaced(model, prompt, where: Place, by):
    def change(whole):
        whole = whole.clone()
        whole[..., where.chosen] = by[..., where.chosen]
        return whole

    if where.is_input:
        hook = where.module.register_forward_pre_hook(lambda _module, inputs: change(inputs[0]))
    else:
        hook = where.module.register_forward_hook(lambda _module, _inputs, output: change(output))
    found = difference(model, prompt, prompt.ids)
    hook.remove()
    return found


def case(family: str, level: str):
    loaded = prepared("tiny", random_model(family, VOCAB, 2), small_tokenizer())
    rng = np.random.default_rng(0)
    prompts = []
    for index in range(2):
        ids, other = (tuple(map(int, rng.integers(0, VOCAB, 7))) for _ in range(2))
        other = (*ids[: 1 + index], *other[1 + index :])
        answer, wrong = map(int, rng.choice(VOCAB, 2, replace=False))
        prompts.append(EncodedPrompt(Prompt(f"p{index}", "ioi", "t", "", ()), ids, (answer,), (wrong,), None, other))
    places = places_of(loaded.components, level)
    places = [point for point in places if point.layer == 1]
    return loaded, prompts, places, metric_for("logit_difference", prompts, loaded.device)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("gpt2", "llama_own_keys")])
def test_effects_are_those_of_hooks_placed_by_hand(family):
    loaded, prompts, places, metric = case(family, "part")
    effects = effects_of(loaded, prompts, places, metric)
    prompt = prompts[0]
    np.testing.assert_allclose(effects.clean[0], difference(loaded.model, prompt, prompt.ids), rtol=1e-5)
    for column, point in enumerate(places):
        where = place(family, loaded.model, point.name)
        if point.value == "m1.out" and family.startswith("gemma"):
            where = Place(loaded.model.model.layers[1].post_feedforward_layernorm, False, slice(None))
        away = value(loaded.model, prompt.counterfactual_ids, where)
        mean = torch.stack([value(loaded.model, prompt.ids, where) for prompt in prompts]).mean(0)
        for ablation, by in {"resample": away, "mean": mean, "zero": torch.zeros_like(away)}.items():
            drop = effects.clean[0] - replaced(loaded.model, prompt, where, by)
            assert effects.drops[ablation][0, column] == pytest.approx(drop, abs=1e-5), (ablation, point.name)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3", "gpt_neox", "opt"])
def test_attribution_is_the_derivative_of_the_effect(family):
    loaded, prompts, places, metric = case(family, "node")
    context = context_of(loaded, prompts, metric)
    values = baselines_of(context, "attribution_patching")["attribution_patching"]
    found = dict(zip((component.name for component in context.components), values[0], strict=True))
    prompt, step = prompts[0], 1e-3
    for point in places:
        where = place(family, loaded.model, point.name)
        here, away = (value(loaded.model, ids, where) for ids in (prompt.ids, prompt.counterfactual_ids))
        towards, beyond = (
            replaced(loaded.model, prompt, where, torch.lerp(here, away, sign)) for sign in (step, -step)
        )
        wanted = (beyond - towards) / (2 * step)
        # the library's RMS norms round to float32, which the difference of the two effects magnifies
        assert found[point.name] == pytest.approx(wanted, rel=5e-3, abs=5e-4), point.name


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox_serial"])
def test_in_the_last_block_the_mlps_direct_effect_is_its_share_of_the_logits(family):
    """With the final norm's statistics fixed, and without a cap, the final stream's parts add up to the logits."""
    config = {"final_logit_softcapping": None} if family == "gemma2" else {}
    loaded = prepared("tiny", random_model(family, VOCAB, 2, **config), small_tokenizer())
    model, ids = loaded.model, (3, 1, 4, 1, 5)
    record = Prompt("p", "ioi", "t", "", ())
    prompt = EncodedPrompt(record, ids, (9,), (2,), None, (2, 7, 1, 8, 2))
    places = places_of(loaded.components, "node")
    metric = metric_for("logit_difference", [prompt], loaded.device)
    found = baselines_of(context_of(loaded, [prompt], metric), "direct_effect")["direct_effect"][0]
    block = model.gpt_neox.layers[2] if family == "gpt_neox_serial" else model.model.layers[2]
    final = model.gpt_neox.final_layer_norm if family == "gpt_neox_serial" else model.model.norm
    adds = block.post_feedforward_layernorm if family == "gemma2" else block.mlp
    kept = {}
    hooks = [
        adds.register_forward_hook(lambda _module, _inputs, output: kept.update(added=output[0, -1])),
        final.register_forward_pre_hook(lambda _module, inputs: kept.update(stream=inputs[0][0, -1])),
    ]
    wanted = difference(model, prompt, ids)
    for hook in hooks:
        hook.remove()
    stream, added = kept["stream"], kept["added"]
    if family == "gpt_neox_serial":
        added = added - added.mean()
        scaled = added / (stream.var(correction=0) + final.eps).sqrt() * final.weight
    else:
        eps = final.eps if family == "gemma2" else final.variance_epsilon
        gain = final.weight + (1 if family == "gemma2" else 0)
        scaled = added / (stream.square().mean() + eps).sqrt() * gain
    direction = model.lm_head.weight[9] - model.lm_head.weight[2]
    assert abs(float(scaled @ direction)) < 100 * abs(wanted)
    assert found[[point.name for point in places].index("m2")] == pytest.approx(float(scaled @ direction), rel=1e-4)
