import dataclasses

import numpy as np
import pytest
import torch
from evaluation_cases import baselines_of, circuits_of, context_of, effects_of
from hypothesis import given, settings
from hypothesis import strategies as st
from library_modules import last_logits, place
from random_prompts import VOCAB
from tiny_models import random_model, small_tokenizer, tiny_gpt2

from gbcd.errors import BadInput
from gbcd.evaluation.evaluation_plan import pair_up
from gbcd.evaluation.metrics import metric_for
from gbcd.evaluation.places import places_of
from gbcd.models.load import prepared
from gbcd.models.rules import RULES, Rules
from gbcd.prompting.prompt import Prompt
from gbcd.prompting.tokens import EncodedPrompt

HEADS, WIDTH = 2, 16


@pytest.fixture(scope="module")
def loaded():
    model, tokenizer = tiny_gpt2(n_layers=3, n_heads=HEADS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6).add_(torch.randn_like(parameter) * 0.05)
    return prepared("tiny", model.double(), tokenizer)


def encoded(seed=0, lengths=(7, 5, 7, 6), n_answers=1, n_wrong=1):
    rng = np.random.default_rng(seed)

    def drawn(n):
        return tuple(int(token) for token in rng.integers(0, 400, n))

    def with_counterfactual(number, ids):
        """Of which prompts share one, two or three first tokens."""
        other = (*ids[: number % 3 + 1], *drawn(len(ids) - number % 3 - 1))
        return EncodedPrompt(
            Prompt(f"p{number}", "ioi", "t", "", ()), ids, drawn(n_answers), drawn(n_wrong), None, other
        )

    return [with_counterfactual(number, drawn(n)) for number, n in enumerate(lengths)]


def prepared_case(loaded, level="node", metric="logit_difference", **drawn):
    prompts = encoded(**drawn)
    places = places_of(loaded.components, level)
    return prompts, places, metric_for(metric, prompts, loaded.device)


def difference(model, prompt, ids):
    logits = model(torch.tensor([ids])).logits[0, -1]
    return float(logits[prompt.answer_ids[0]] - logits[prompt.wrong_ids[0]])


def values_by_hand(model, ids):
    """What heads hand out together, `("o", layer)`, and what MLPs write, `("out", layer)`."""
    places = {("o", layer): place("gpt2", model, f"a{layer}.z") for layer in range(3)}
    places |= {("out", layer): place("gpt2", model, f"m{layer}.out") for layer in range(3)}
    return {key: where.read(lambda: last_logits(model, ids)) for key, where in places.items()}


def test_zero_ablation_of_the_last_mlp_worked_out_on_paper(loaded):
    prompts, places, metric = prepared_case(loaded)
    effects = effects_of(loaded, prompts, places, metric, ["zero"])
    column = [point.name for point in places].index("m2")
    body = loaded.model.transformer
    for row, prompt in enumerate(prompts):
        kept = {}
        hook = body.ln_f.register_forward_pre_hook(lambda _module, inputs, kept=kept: kept.update(x=inputs[0][0, -1]))
        mlp = values_by_hand(loaded.model, prompt.ids)[("out", 2)][0, -1]
        hook.remove()
        x = kept["x"] - mlp
        normed = (x - x.mean()) / (x.var(correction=0) + body.ln_f.eps).sqrt() * body.ln_f.weight + body.ln_f.bias
        logits = loaded.model.lm_head.weight @ normed
        left = float(logits[prompt.answer_ids[0]] - logits[prompt.wrong_ids[0]])
        assert effects.drops["zero"][row, column] == pytest.approx(effects.clean[row] - left)


def test_a_circuit_of_everything_is_the_model_and_of_one_missing_node_its_ablation(loaded):
    prompts, places, metric = prepared_case(loaded)
    names = [point.name for point in places]
    found = circuits_of(loaded, prompts, places, [names, set(names) - {"a1.h0"}, []], metric)
    effects = effects_of(loaded, prompts, places, metric, ["resample"])
    np.testing.assert_allclose(found[0], effects.clean)
    np.testing.assert_allclose(found[1], effects.clean - effects.drops["resample"][:, names.index("a1.h0")])
    # With every node resampled the embeddings alone are the prompt's own
    prompt, away = prompts[1], values_by_hand(loaded.model, prompts[1].counterfactual_ids)
    body = loaded.model.transformer
    with torch.no_grad():
        x = body.wte.weight[prompt.ids[-1]] + body.wpe.weight[len(prompt.ids) - 1]
        for layer, block in enumerate(body.h):
            x = x + block.attn.c_proj(away[("o", layer)])[0, -1] + away[("out", layer)][0, -1]
        logits = loaded.model.lm_head(body.ln_f(x))
    wanted = float(logits[prompt.answer_ids[0]] - logits[prompt.wrong_ids[0]])
    assert found[2][1] == pytest.approx(wanted)


def test_integrated_gradients_and_hisp_by_hand(loaded):
    prompts, places, metric = prepared_case(loaded, lengths=(5,))
    found = baselines_of(context_of(loaded, prompts, metric), "attribution_patching_ig", "hisp")
    [prompt], model = prompts, loaded.model
    table = model.transformer.wte.weight
    sums = 0
    for step in range(1, 6):
        kept = []
        model.transformer.h[1].attn.c_proj.register_forward_pre_hook(
            lambda _m, inputs, kept=kept: kept.append(inputs[0])
        )
        start = table[list(prompt.counterfactual_ids)].lerp(table[list(prompt.ids)], step / 5)
        logits = model(inputs_embeds=start[None].requires_grad_()).logits[0, -1]
        loss = logits[prompt.answer_ids[0]] - logits[prompt.wrong_ids[0]]
        [gradient] = torch.autograd.grad(loss, kept[0])
        model.transformer.h[1].attn.c_proj._forward_pre_hooks.clear()
        sums = sums + gradient / 5
    z, other = (values_by_hand(model, ids)[("o", 1)] for ids in (prompt.ids, prompt.counterfactual_ids))
    half = slice(WIDTH // 2, WIDTH)
    column = [point.name for point in places].index("a1.h1")
    by_hand = float(((z - other) * sums)[..., half].sum())
    assert found["attribution_patching_ig"][0, column] == pytest.approx(by_hand)
    assert found["hisp"][0, column] == pytest.approx(abs(float((z * gradient)[..., half].sum())))


def test_direct_effects_add_up_to_the_logit_difference(loaded):
    """All nodes, the embeddings and the biases together are the final residual stream."""
    prompts, _, metric = prepared_case(loaded)
    found = baselines_of(context_of(loaded, prompts, metric), "direct_effect")["direct_effect"]
    body = loaded.model.transformer
    for row, prompt in enumerate(prompts):
        kept = {}
        hook = body.ln_f.register_forward_pre_hook(lambda _module, inputs, kept=kept: kept.update(x=inputs[0][0, -1]))
        wanted = difference(loaded.model, prompt, prompt.ids)
        hook.remove()
        rest = body.wte.weight[prompt.ids[-1]] + body.wpe.weight[len(prompt.ids) - 1]
        rest = rest + sum(block.attn.c_proj.bias for block in body.h)
        deviation = (kept["x"].var(correction=0) + body.ln_f.eps).sqrt()
        unembed = loaded.model.lm_head.weight[prompt.answer_ids[0]] - loaded.model.lm_head.weight[prompt.wrong_ids[0]]
        others = ((rest - rest.mean()) / deviation * body.ln_f.weight + body.ln_f.bias) @ unembed
        assert found[row].sum() + float(others) == pytest.approx(wanted)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 3))
def test_batching_does_not_matter(loaded, seed, n_together):
    prompts, places, metric = prepared_case(loaded, seed=seed)
    together = effects_of(loaded, prompts, places, metric)
    for start in range(0, len(prompts), n_together):
        some = prompts[start : start + n_together]
        apart = effects_of(
            loaded, some, places, metric_for("logit_difference", some, loaded.device), ["resample", "zero"]
        )
        for ablation, drops in apart.drops.items():
            np.testing.assert_allclose(together.drops[ablation][start : start + n_together], drops, atol=1e-9)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("rules", ["relp", "gim"])
def test_switching_a_rule_off_changes_the_number(family, rules):
    """Every rule of the two sets counts where the model has what it is about."""
    loaded = prepared(family, random_model(family, VOCAB), small_tokenizer())
    prompts = [
        EncodedPrompt(Prompt("p", "ioi", "t", "", ()), (1, 2, 3, 4, 5), (6,), (7,), None, (1, 9, 3, 8, 5)),
    ]
    metric = metric_for("logit_difference", prompts, loaded.device)
    whole = baselines_of(context_of(loaded, prompts, metric), rules, "attribution_patching")
    assert np.abs(whole[rules] - whole["attribution_patching"]).max() > 1e-3
    defaults = {one.name: one.default for one in dataclasses.fields(Rules)}
    switched = [name for name, value in dataclasses.asdict(RULES[rules]).items() if value != defaults[name]]
    for rule in set(switched) - {"name"}:
        without = dataclasses.replace(RULES[rules], **{rule: defaults[rule]})
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(RULES, rules, without)
            found = baselines_of(context_of(loaded, prompts, metric), rules)[rules]
        assert np.abs(found - whole[rules]).max() > 1e-4, rule


def test_metrics_of_sets_of_answers():
    prompts = encoded(lengths=(4, 4))
    prompts = [
        EncodedPrompt(p.prompt, p.ids, a, (3,), None, None) for p, a in zip(prompts, [(0, 1), (2,)], strict=True)
    ]
    p = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    found = {
        name: metric_for(name, prompts, p.device)(p.log() + 7, [0, 1]).tolist()
        for name in ("logit_difference", "probability_difference", "negative_log_probability")
    }
    assert found["logit_difference"] == pytest.approx([np.log(0.3 / 0.4), np.log(0.3 / 0.4)])
    assert found["probability_difference"] == pytest.approx([-0.1, -0.1])
    assert found["negative_log_probability"] == pytest.approx([np.log(0.3), np.log(0.3)])


def test_what_cannot_be_measured_is_refused(loaded):
    bare = [EncodedPrompt(p.prompt, p.ids, p.answer_ids, (), None, None) for p in encoded()]
    with pytest.raises(BadInput, match="needs a wrong answer, and 4 prompts have none, the first is p0"):
        metric_for("logit_difference", bare, loaded.device)
    with pytest.raises(BadInput, match="mean_squared_error"):
        metric_for("mean_squared_error", bare, loaded.device)
    odd = [*encoded(), *bare, EncodedPrompt(Prompt("q", "ioi", "t", "", ()), (1, 2), (3,), (4,), None, (1,))]
    pairs = pair_up(odd)
    assert [len(prompt.ids) for prompt in pairs.usable] == [7, 7, 6, 5]
    # of fewer than there are the first, not the shortest
    assert {prompt.prompt.id for prompt in pair_up(odd, at_most=2).usable} == {odd[0].prompt.id, odd[1].prompt.id}
    assert pairs.refused[-1] == "q: 2 tokens, but 1 in its counterfactual, and no partner"
    assert pairs.refused[0] == "p0: no counterfactual, and no partner"
