"""Backward rules against the library's own modules, changed to pass gradients back by other formulas."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial

import pytest
import torch
from oracle_values import check, engine_values, loaded_model, mixed_prompts, oracle_values
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gbcd.engine.engine import Engine, packed_for
from gbcd.engine.oracle import Oracle
from gbcd.engine.scores import ScoreTable
from gbcd.models.forward import Options
from gbcd.models.rules import PLAIN, RULES

FAMILIES = ["gpt2", "llama", "qwen3", "gemma2", "gpt_neox"]


def passing(x, share):
    """`x`, with that share of its gradient."""
    return x.detach() + share * (x - x.detach())


def with_constant_statistics(module, kind, offset, x):
    centred = x - x.mean(-1, keepdim=True) if kind == "layer" else x
    eps = getattr(module, "variance_epsilon", None) or module.eps
    statistic = (centred.square().mean(-1, keepdim=True) + eps).sqrt().detach()
    bias = module.bias if kind == "layer" else 0
    return centred / statistic * (module.weight + offset) + bias


def softened_attention(share, module, query, key, value, attention_mask, **options):
    """Softmax goes back by the Jacobian of the softmax at twice the temperature, without its factor of a half.

    Queries and keys get `share` of their gradient, values half.
    """
    query, key, value = passing(query, share), passing(key, share), passing(value, 0.5)
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = query @ key.transpose(2, 3) * (options.get("scaling") or query.shape[-1] ** -0.5)
    if options.get("softcap"):
        scores = options["softcap"] * torch.tanh(scores / options["softcap"])
    length = query.shape[2]
    distance = torch.arange(length).unsqueeze(1) - torch.arange(length)
    hidden = (distance < 0) | (distance >= (options.get("sliding_window") or length))
    scores = scores.masked_fill(hidden, -torch.inf)
    softer = (scores / 2).softmax(-1)
    pattern = scores.softmax(-1).detach() + 2 * (softer - softer.detach())
    return (pattern @ value).transpose(1, 2).contiguous(), None


def gated_by_halves(mlp, act, x):
    """`act(g) = g * constant`, and each factor of the product gets half of its gradient."""
    gate, up = mlp.gate_proj(x), mlp.up_proj(x)
    gate = gate * (act(gate) / gate).detach()
    return mlp.down_proj((gate * up.detach() + gate.detach() * up) / 2)


def act_by_constant(act, x):
    return x * (act(x) / x).detach()


def changed(loaded, name):
    """The oracle with the library's modules changed by hand."""
    oracle = Oracle(loaded)
    for norm in loaded.spec.norms:
        module = oracle.model.get_submodule(norm.module)
        module.forward = partial(with_constant_statistics, module, norm.kind, norm.offset)
    if name in ("gim", "combined"):
        ALL_ATTENTION_FUNCTIONS.register("softened", partial(softened_attention, 0.25 if name == "gim" else 0.5))
        oracle.model.config._attn_implementation = "softened"
    if name == "gim":
        return oracle
    for module in oracle.model.modules():
        if hasattr(module, "gate_proj"):
            module.forward = partial(gated_by_halves, module, module.act_fn.forward)
        elif hasattr(module, "act") and hasattr(module.act, "forward"):
            module.act.forward = partial(act_by_constant, module.act.forward)
    return oracle


@pytest.mark.parametrize("name", ["relp", "gim", "combined"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rules_are_those_of_the_librarys_modules_changed_by_hand(family, name):
    loaded, prompts = loaded_model(family), mixed_prompts((6, 4))
    found = engine_values(Engine(loaded, ["logit_difference"], rules=name), prompts)
    expected = oracle_values(loaded, prompts, "logit_difference", oracle=changed(loaded, name))
    check(found, expected, loaded, 1e-10)
    plain = engine_values(Engine(loaded, ["logit_difference"]), prompts)
    assert (plain.statistics["grad_norm"] / found.statistics["grad_norm"] - 1).abs().max() > 0.1


SWITCHES = {
    "fixed_norms": True,
    "fixed_activations": True,
    "split_gates": True,
    "softmax_temperature": 2.0,
    "query_key_share": 0.25,
    "value_share": 0.5,
}


def test_every_switch_is_tried_here():
    assert SWITCHES.keys() == {field.name for field in fields(PLAIN)} - {"name"}


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_changes_what_is_passed_back_and_nothing_else(switch):
    loaded, prompts = loaded_model("llama"), mixed_prompts((6, 4))
    packed, found = packed_for(loaded, [(one.ids,) for one in prompts]), []
    for rules in (PLAIN, replace(PLAIN, **{switch: SWITCHES[switch]})):
        run = loaded.decoder.run(packed, Options(graph=True, keep=True, rules=rules))
        table = ScoreTable(loaded.components, len(prompts), {})
        run.backward(torch.ones_like(run.logits) * run.logits, table)
        found.append((run, table.values()["grad_norm"]))
    (plain, before), (other, after) = found
    torch.testing.assert_close(other.logits, plain.logits, rtol=1e-13, atol=1e-13)
    for one, two in zip(plain.inputs(), other.inputs(), strict=True):
        torch.testing.assert_close(one.x, two.x, rtol=1e-11, atol=1e-12)
    assert (after / before - 1).abs().max() > 0.05
    # what stands behind the last place that the switch concerns keeps its gradient
    behind = ["unembed", "final.norm"] + ([] if switch == "fixed_norms" else ["m2.down"])
    columns = [index for index, one in enumerate(loaded.components) if one.name in behind]
    torch.testing.assert_close(after[:, columns], before[:, columns], rtol=1e-11, atol=0)


def test_the_rules_of_each_name_are_the_switches_of_its_paper():
    assert RULES["plain"] == PLAIN
    assert [name for name, rules in RULES.items() if not rules.fixed_norms] == ["plain"]
    assert RULES["relp"].softmax_temperature == RULES["relp"].value_share == 1.0
    assert not RULES["gim"].split_gates
