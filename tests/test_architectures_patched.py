"""Ablation, patching and direct effects on every architecture, against hooks of torch placed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluation_cases import baselines_of, context_of, effects_of
from library_modules import block, last_logits, place
from random_prompts import VOCAB
from tiny_models import FAMILIES, random_model, small_tokenizer

from gbcd.evaluation.metrics import metric_for
from gbcd.evaluation.places import places_of
from gbcd.models.load import prepared
from gbcd.prompting.prompt import Prompt
from gbcd.prompting.tokens import EncodedPrompt


def difference(prompt, logits):
    return float(logits[prompt.answer_ids[0]] - logits[prompt.wrong_ids[0]])


def case(family: str, level: str):
    """Two prompts of other lengths, which share one and two first tokens with their counterfactuals."""
    loaded = prepared("tiny", random_model(family, VOCAB, 2), small_tokenizer())
    rng = np.random.default_rng(0)
    prompts = []
    for index, length in enumerate((7, 5)):
        ids, other = (tuple(map(int, rng.integers(0, VOCAB, length))) for _ in range(2))
        other = (*ids[: 1 + index], *other[1 + index :])
        answer, wrong = map(int, rng.choice(VOCAB, 2, replace=False))
        prompts.append(EncodedPrompt(Prompt(f"p{index}", "ioi", "t", "", ()), ids, (answer,), (wrong,), None, other))
    places = [point for point in places_of(loaded.components, level) if point.layer == (2 if level == "node" else 1)]
    return loaded, prompts, places, metric_for("logit_difference", prompts, loaded.device)


@pytest.mark.parametrize(("family", "level"), [("gpt2", "node"), *((family, "part") for family in FAMILIES)])
def test_effects_are_those_of_hooks_placed_by_hand(family, level):
    loaded, prompts, places, metric = case(family, level)
    effects = effects_of(loaded, prompts, places, metric)

    def run(ids):
        return lambda: last_logits(loaded.model, ids)

    for column, point in enumerate(places):
        where = place(family, loaded.model, point.value)
        longer, shorter = (where.cut(run(prompt.ids)) for prompt in prompts)
        mean = torch.cat([(longer[: len(shorter)] + shorter) / 2, longer[len(shorter) :]])
        for row, prompt in enumerate(prompts):
            clean = difference(prompt, last_logits(loaded.model, prompt.ids))
            assert effects.clean[row] == pytest.approx(clean, rel=1e-5)
            away = where.cut(run(prompt.counterfactual_ids))
            replacements = {"resample": away, "mean": mean[: len(prompt.ids)], "zero": torch.zeros_like(away)}
            for ablation, by in replacements.items():
                drop = clean - difference(prompt, where.replaced(by, [point.slice], run(prompt.ids)))
                assert effects.drops[ablation][row, column] == pytest.approx(drop, abs=1e-5), (ablation, point.name)


@pytest.mark.parametrize(
    ("family", "level"),
    [("gpt2", "part"), *((name, "node") for name in ("llama", "qwen3", "gemma2", "gemma3", "gpt_neox", "opt"))],
)
def test_attribution_is_the_derivative_of_the_effect(family, level):
    """Patching a small part of the way changes the metric by that part of the attribution."""
    loaded, prompts, places, metric = case(family, level)
    context = context_of(loaded, prompts, metric, level)
    values = baselines_of(context, "attribution_patching")["attribution_patching"]
    found = dict(zip((component.name for component in context.components), values[0], strict=True))
    prompt, step = prompts[0], 1e-3
    for point in places:
        where = place(family, loaded.model, point.value)
        if family.startswith("gemma") and point.name[0] == "m":  # an attribution is of the map, before its norm
            where = where._replace(module=block(family, loaded.model, point.layer).mlp.down_proj)
        here, away = (
            where.cut(lambda ids=ids: last_logits(loaded.model, ids)) for ids in (prompt.ids, prompt.counterfactual_ids)
        )
        towards, beyond = (
            difference(
                prompt,
                where.replaced(
                    torch.lerp(here, away, sign), [point.slice], lambda: last_logits(loaded.model, prompt.ids)
                ),
            )
            for sign in (step, -step)
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
    wanted = difference(prompt, last_logits(model, ids))
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
