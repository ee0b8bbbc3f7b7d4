"""Attributions with the gradient averaged on the way from the counterfactual, against autograd through the library."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from evaluation_cases import baselines_of, context_of
from oracle_values import engine_values, exact_calibration, loaded_model, mixed_prompts

from gbcd import tasks, wrong_answers
from gbcd.analysis.circuits import edge_names
from gbcd.engine.engine import Engine, loss_context
from gbcd.engine.oracle import Oracle, _matrix
from gbcd.evaluation.baselines import every_baseline
from gbcd.evaluation.measured import edge_config
from gbcd.evaluation.metrics import metric_for
from gbcd.wrong_answers.losses import TowardsTokens


def with_targets(oracle, loaded, prompt, name):
    """The sequences that a definition reads, and its target, which the prompt's own logits settle."""
    definition = wrong_answers.get(name)
    example = (prompt.ids, prompt.twin_ids) if definition.reads_twin else (prompt.ids,)
    with torch.no_grad():
        logits = oracle.logits(prompt.ids)[-1:]
    return example, definition.define(loss_context([prompt], logits, loaded))


def gradients_at(oracle, example, other, target, share):
    """By each map's output and by the embeddings, a sequence at a time, so much of the way from `other`."""
    spec, kept = oracle._spec, []
    table = oracle.model.get_submodule(spec.embedding.token).weight.detach()

    def keep(path):
        return lambda _module, _inputs, output: kept[-1].update({path: output})

    hooks = [oracle.model.get_submodule(one.module).register_forward_hook(keep(one.module)) for one in spec.maps]
    answers = []
    for sequence in example:
        embedded = torch.lerp(table[list(other)], table[list(sequence)], share).requires_grad_()
        kept.append({spec.embedding.token: embedded})
        answers.append(oracle.model(inputs_embeds=embedded[None]).logits[0, -1])
    for hook in hooks:
        hook.remove()
    loss = target(torch.stack(answers).unsqueeze(0)).sum()
    found = torch.autograd.grad(loss, [value for one in kept for value in one.values()])
    names = [(number, path) for number, one in enumerate(kept) for path in one]
    return {key: d.reshape(len(other), -1) for key, d in zip(names, found, strict=True)}


def by_hand(loaded, prompt, name, steps):
    """Attribution of every slice of every map, and of the token embedding."""
    oracle, spec = Oracle(loaded), loaded.spec
    example, target = with_targets(oracle, loaded, prompt, name)
    points = [gradients_at(oracle, example, prompt.reference_ids, target, (k + 1) / steps) for k in range(steps)]
    mean = {key: sum(point[key] for point in points) / steps for key in points[0]}
    there = oracle.inputs(prompt.reference_ids)
    table = oracle.model.get_submodule(spec.embedding.token).weight.detach()
    found = {"embed.token": 0.0}
    for number, sequence in enumerate(example):
        here = oracle.inputs(sequence)
        rows = table[list(sequence)] - table[list(prompt.reference_ids)]
        found["embed.token"] += float((rows * mean[number, spec.embedding.token]).sum())
        for one in spec.maps:
            difference, d = here[one.module] - there[one.module], mean[number, one.module]
            weight = _matrix(oracle.model.get_submodule(one.module), "data")
            n = len(one.components)
            if one.axis == "out":
                values = ((difference @ weight) * d).unflatten(1, (n, -1)).sum((0, 2))
            else:
                values = (difference * (d @ weight.T)).unflatten(1, (n, -1)).sum((0, 2))
            for component, value in zip(one.components, values.tolist(), strict=True):
                found[component] = found.get(component, 0.0) + value
    return found


@pytest.mark.parametrize("name", ["inverse_logits", "logit_difference"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_three_steps_equal_the_oracle(family, name):
    """In a batch of several lengths; `logit_difference` reads twins, which go the way from the same counterfactual."""
    loaded, prompts = loaded_model(family), mixed_prompts((6, 4))
    values = engine_values(Engine(loaded, [name], ig_steps=3), prompts).statistics["attribution"]
    column = {component.name: index for index, component in enumerate(loaded.components)}
    for row, prompt in enumerate(prompts):
        wanted = by_hand(loaded, prompt, name, 3)
        scale = max(map(abs, wanted.values()))
        for component, value in wanted.items():
            found = float(values[row, column[component]])
            assert found == pytest.approx(value, rel=1e-9, abs=1e-10 * scale), (prompt.prompt.id, component)


def test_one_step_is_the_plain_score_and_more_change_attributions_alone():
    loaded, prompts = loaded_model("llama"), mixed_prompts((6, 4))
    sample = [replace(p, prompt=replace(p.prompt, id=f"sample/{p.prompt.id}")) for p in mixed_prompts((6,) * 3, 9)]
    calibration = exact_calibration(Oracle(loaded), sample, "position")
    plain, one, three = (
        engine_values(Engine(loaded, ["inverse_logits"], calibration, **given), prompts)
        for given in ({}, {"ig_steps": 1}, {"ig_steps": 3})
    )
    for name, values in plain.statistics.items():
        assert torch.equal(values, one.statistics[name]), name
        assert torch.equal(values, three.statistics[name]) == (name != "attribution"), name
    assert torch.equal(plain.losses, three.losses)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_attributions_of_the_embeddings_come_to_the_difference_of_the_losses(family):
    """A sum at the right ends of N intervals, whose error falls with 1 / N."""
    loaded, (prompt,) = loaded_model(family), mixed_prompts((5,))
    oracle = Oracle(loaded)
    target = TowardsTokens([prompt.wrong_ids])
    with torch.no_grad():
        here, there = (float(target(oracle.logits(ids)[-1].view(1, 1, -1))) for ids in (prompt.ids, prompt.partner_ids))
    at = [component.name for component in loaded.components].index("embed.token")

    def error(steps):
        values = engine_values(Engine(loaded, ["foil"], ig_steps=steps), [prompt]).statistics["attribution"]
        return float(values[0, at]) - (here - there)

    first, second = error(50), error(200)
    assert abs(second) < abs(first) / 3
    assert abs(second) < 0.02 * abs(here - there)


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize(("family", "task"), [("gpt2", "ioi"), ("llama", "greater_than"), ("llama", "induction")])
def test_a_studys_attribution_is_that_of_the_evaluations_baseline(family, task, steps):
    """Of the loss `margin` and the metric that it is, for every part and edge, in batches of other sizes."""
    loaded = loaded_model(family)
    prompts = [
        replace(one, twin_ids=None, prompt=replace(one.prompt, task=task)) for one in mixed_prompts((6, 6, 4, 5))
    ]
    metric = metric_for(tasks.get(task).metric, prompts, loaded.device)
    context = context_of(loaded, prompts, metric, "part", with_edges=True)
    name = {1: "attribution_patching", 5: "attribution_patching_ig"}[steps]
    wanted = baselines_of(context, name)[name]
    engine = Engine(loaded, ["margin"], edges=True, ig_steps=steps)
    rows = [group.losses[0] for at in (0, 2) for group in engine._batch(prompts[at : at + 2])]
    column = {component.name: index for index, component in enumerate(loaded.components)}
    chosen = [column[component.name] for component in context.components]
    found = torch.cat([one.statistics["attribution"][:, chosen] for one in rows])
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-9, atol=1e-12)
    edges = torch.cat([one.many["edges"] for one in rows])
    torch.testing.assert_close(edges, every_baseline()[name].edges(context), rtol=1e-9, atol=1e-12)
    assert found.abs().max() > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "gpt_neox"])
def test_edges_are_integrated_as_nodes_are(family):
    """Edges out of a node add up to its attribution, also with twins; and are there without it."""
    loaded, prompts = loaded_model(family), mixed_prompts((6, 4))
    engine = Engine(loaded, ["logit_difference"], edges=True, ig_steps=3)
    (group,) = engine._batch(prompts)
    (loss,) = group.losses
    column = {component.name: index for index, component in enumerate(loaded.components)}
    writers = {f"a{layer}.h{head}": f"a{layer}.h{head}.o" for layer in range(3) for head in range(4)}
    writers |= {f"m{layer}": f"m{layer}.out" if f"m{layer}.out" in column else f"m{layer}.down" for layer in range(3)}
    for edges, parts in zip(loss.many["edges"], loss.statistics["attribution"], strict=True):
        sums = dict.fromkeys(["input", *writers], 0.0)
        for edge, score in zip(edge_names(edge_config(loaded)), edges.tolist(), strict=True):
            sums[edge.split("->")[0]] += score
        for node, part in {"input": "embed.token", **writers}.items():
            assert sums[node] == pytest.approx(float(parts[column[part]]), rel=1e-9, abs=1e-10), node
    alone = Engine(loaded, ["logit_difference"], edges=True, ig_steps=3, statistics=("grad_norm",))
    (of_alone,) = next(iter(alone._batch(prompts))).losses
    assert of_alone.statistics.keys() == {"grad_norm"}
    torch.testing.assert_close(of_alone.many["edges"], loss.many["edges"], rtol=1e-12, atol=1e-14)
