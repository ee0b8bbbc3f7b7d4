"""Attribution of edges, against patches of single edges and against the attributions of nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from oracle_values import engine_values, exact_calibration, loaded_model, mixed_prompts
from slow_edges import SlowEdges
from tiny_models import FAMILIES

from gbcd.analysis.circuits import edge_names
from gbcd.engine.engine import Engine
from gbcd.engine.moments import PromptMoments
from gbcd.engine.oracle import Oracle
from gbcd.evaluation.measured import edge_config
from gbcd.wrong_answers.losses import TowardsTokens

TWO_LAYERS = {
    "gpt2": {"n_layer": 2},
    "gemma3": {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]},
}
#: Where a norm stands between what a head or MLP writes and the residual stream.
NORM_BEHIND = ("gemma2", "gemma3")


class Row(NamedTuple):
    """Of one prompt: attributions of edges and of parts, by name."""

    edges: dict[str, float]
    parts: dict[str, float]


def rows(loaded, prompts, definition, rules="plain"):
    engine = Engine(loaded, [definition], rules=rules, edges=True)
    names, found = [one.name for one in loaded.components], {}
    for group in engine._batch(prompts):
        (loss,) = group.losses
        for row, prompt in enumerate(group.prompts):
            edges = dict(zip(edge_names(edge_config(loaded)), loss.many["edges"][row].tolist(), strict=True))
            found[prompt.prompt.id] = Row(
                edges, dict(zip(names, loss.statistics["attribution"][row].tolist(), strict=True))
            )
    return [found[prompt.prompt.id] for prompt in prompts]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edge_is_the_derivative_of_its_patch(family):
    """The loss when the difference that one reader sees is scaled by a step, on the library's modules."""
    loaded = loaded_model(family, **TWO_LAYERS.get(family, {"num_hidden_layers": 2}))
    prompts, slow = mixed_prompts((5, 4)), SlowEdges(loaded)
    found = rows(loaded, prompts, "foil")[0].edges
    prompt, step = prompts[0], 1e-3
    target = TowardsTokens([prompt.wrong_ids])
    here, there = slow.written(prompt.ids), slow.written(prompt.reference_ids)
    largest = max(map(abs, found.values()))
    for edge, score in found.items():
        source, reader = edge.split("->")
        change = here[source] - there[source]
        beyond, towards = (slow.patched(prompt.ids, target, reader, sign * step * change) for sign in (1, -1))
        assert score == pytest.approx((beyond - towards) / (2 * step), rel=1e-4, abs=1e-4 * largest), edge
    assert sum(abs(score) > 1e-3 * largest for score in found.values()) > 0.7 * len(found)


def test_the_error_of_an_estimate_falls_with_the_square_of_the_difference():
    loaded = loaded_model("llama", num_hidden_layers=2)
    (prompt,), slow = mixed_prompts((5,)), SlowEdges(loaded)
    found = rows(loaded, [prompt], "foil")[0].edges
    target = TowardsTokens([prompt.wrong_ids])
    here, there = slow.written(prompt.ids), slow.written(prompt.reference_ids)
    clean = slow.loss(prompt.ids, target)
    for edge in ("input->a0.h1<q>", "a0.h2->a1.h3<k>", "m0->a1.h0<v>", "a1.h1->m1", "a0.h0->logits"):
        source, reader = edge.split("->")
        errors = []
        for share in (0.02, 0.01):
            lost = clean - slow.patched(prompt.ids, target, reader, share * (there[source] - here[source]))
            errors.append(lost - share * found[edge])
        assert errors[0] / errors[1] == pytest.approx(4, rel=0.1), edge


@pytest.mark.parametrize("rules", ["plain", "relp", "gim"])
@pytest.mark.parametrize("family", FAMILIES)
def test_edges_out_of_a_node_add_up_to_its_attribution(family, rules):
    """Also in a batch of several lengths, with twins: the gradient by what a node writes is that by all its readers."""
    loaded = loaded_model(family)
    out = "out" if "m0.out" in [one.name for one in loaded.components] else "down"
    for row in rows(loaded, mixed_prompts((6, 4)), "logit_difference", rules):
        sums: dict[str, float] = {}
        for edge, score in row.edges.items():
            source = edge.split("->")[0]
            sums[source] = sums.get(source, 0.0) + score
        wanted = {"input": row.parts["embed.token"]}
        if family not in NORM_BEHIND:
            wanted |= {f"a{layer}.h{head}": row.parts[f"a{layer}.h{head}.o"] for layer in range(3) for head in range(4)}
            wanted |= {f"m{layer}": row.parts[f"m{layer}.{out}"] for layer in range(3)}
        scale = max(map(abs, row.edges.values()))
        for node, value in wanted.items():
            assert sums[node] == pytest.approx(value, rel=1e-9, abs=1e-10 * scale), node


@pytest.mark.parametrize("family", FAMILIES)
def test_edges_change_no_other_statistic(family):
    loaded, prompts = loaded_model(family), mixed_prompts((6, 4))
    sample = [
        replace(one, prompt=replace(one.prompt, id=f"sample/{one.prompt.id}")) for one in mixed_prompts((6,) * 3, 9)
    ]
    calibration = exact_calibration(Oracle(loaded), sample, "position")
    with_edges, without = (
        engine_values(Engine(loaded, ["inverse_logits"], calibration, edges=edges), prompts) for edges in (True, False)
    )
    assert with_edges.statistics.keys() == without.statistics.keys()
    for name, values in with_edges.statistics.items():
        largest = float(values.abs().max())
        torch.testing.assert_close(values, without.statistics[name], rtol=1e-9, atol=1e-12 * largest, msg=name)


def test_moments_of_two_batches_merge_to_those_of_one():
    values = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole, merged = PromptMoments.of(values), PromptMoments.of(values[:3]).added(PromptMoments.of(values[3:]))
    assert merged.n == whole.n == 7
    torch.testing.assert_close(merged.sum, whole.sum)
    torch.testing.assert_close(merged.sum_sq, values.square().sum(0))
    assert merged.n_positive.tolist() == (values > 0).sum(0).tolist()


def test_prompts_without_a_reference_have_no_part_in_the_moments():
    loaded, prompts = loaded_model("gpt2"), mixed_prompts((5, 5, 4))
    mixed = [prompts[0], replace(prompts[1], partner_ids=None), prompts[2]]
    engine = Engine(loaded, ["foil"], edges=True)
    (row,) = engine.compute(mixed).moments.to_pylist()
    assert (row["task"], row["wrong_answer"], row["n"]) == ("p", "foil", 2)
    alone = [list(one.edges.values()) for one in rows(loaded, [prompts[0], prompts[2]], "foil")]
    torch.testing.assert_close(torch.tensor(row["sum"]), torch.tensor(alone).sum(0), rtol=1e-6, atol=1e-6)
    nobody = [replace(one, partner_ids=None) for one in prompts]
    assert engine.compute(nobody).moments is None
