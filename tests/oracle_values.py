"""The engine's statistics beside the oracle's, both in float64: what tests of models and engine compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from random_prompts import VOCAB, random_prompts
from tiny_models import random_model, small_tokenizer

from gbcd import wrong_answers
from gbcd.engine.calibration import Calibration, Centering, TaskMeans
from gbcd.engine.engine import Engine, loss_context, target_of
from gbcd.engine.oracle import Oracle
from gbcd.engine.tables import ATTRIBUTIONS, NORMS, STATISTICS
from gbcd.models.load import LoadedModel, prepared
from gbcd.models.packing import Example
from gbcd.prompting.outputs import space_of
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.wrong_answers import WrongAnswer
from gbcd.wrong_answers.losses import Target
from gbcd.wrong_answers.output_targets import output_context

#: A norm counts as cancelled below this share of the norm that is not compared with anything.
_CANCELLED = 1e-3


def loaded_model(family: str, dtype: torch.dtype = torch.float64, **config: object) -> LoadedModel:
    """A random model of a family of `tiny_models`."""
    return prepared(family, random_model(family, VOCAB, 1, dtype, **config), small_tokenizer())


def with_partners(prompts: Sequence[EncodedPrompt], shared: int = 0) -> list[EncodedPrompt]:
    """The prompts, each with other tokens to compare it with, behind the first `shared`, or one more in every other."""
    generator = torch.Generator().manual_seed(0)
    found: list[EncodedPrompt] = []
    for row, one in enumerate(prompts):
        other = torch.randint(VOCAB, (len(one.ids),), generator=generator).tolist()
        n = shared + row % 2 if shared else 0
        found.append(replace(one, partner_ids=(*one.ids[:n], *other[n:])))
    return found


class Values(NamedTuple):
    """Statistics of some prompts, by name, and the losses."""

    statistics: dict[str, torch.Tensor]
    losses: torch.Tensor


def engine_values(engine: Engine, prompts: Sequence[EncodedPrompt]) -> Values:
    """What the engine computes, before it becomes tables of float32; of the engine's first definition."""
    rows: dict[str, tuple[dict[str, torch.Tensor], torch.Tensor]] = {}
    for group in engine._batch(prompts):
        loss = group.losses[0]
        for row, prompt in enumerate(group.prompts):
            of_prompt = {name: table[row].double() for name, table in loss.statistics.items()}
            rows[prompt.prompt.id] = of_prompt, loss.losses[row]
    found = [rows[prompt.prompt.id] for prompt in prompts]
    names = found[0][0].keys()
    return Values({name: torch.stack([one[name] for one, _ in found]) for name in names},
                  torch.stack([loss for _, loss in found]))  # fmt: skip


def exact_calibration(oracle: Oracle, sample: Sequence[EncodedPrompt], centering: Centering) -> Calibration:
    """Mean inputs by the oracle, in float64, where the engine's own are stored in float32."""
    group_of = [one.prompt.template if centering == "template" else "" for one in sample]
    groups, length = tuple(sorted(set(group_of))), max(len(one.ids) for one in sample)
    names = input_names(oracle)
    means = {name: [torch.zeros(length, 0)] * len(groups) for name in names.values()}
    for index, group in enumerate(groups):
        mean = mean_inputs(oracle, [one for one, own in zip(sample, group_of, strict=True) if own == group])
        for path, name in names.items():
            means[name][index] = torch.nn.functional.pad(mean[path], (0, 0, 0, length - len(mean[path])))
    tokens = torch.full((len(sample), length), -1)
    for row, one in enumerate(sample):
        tokens[row, : len(one.ids)] = torch.tensor(one.ids)
    stacked = {name: torch.stack(of_groups) for name, of_groups in means.items()}
    index = torch.tensor([groups.index(group) for group in group_of])
    members = tuple(one.prompt.id for one in sample)
    return Calibration(centering, {"p": TaskMeans(groups, stacked, tokens, index, members)})


def mean_inputs(oracle: Oracle, sample: Sequence[EncodedPrompt]) -> dict[str, torch.Tensor]:
    """Mean of what every module reads, by position, over the prompts that reach it."""
    length = max(len(one.ids) for one in sample)
    total: dict[str, torch.Tensor] = {}
    counts = torch.zeros(length, 1, dtype=torch.float64)
    for one in sample:
        counts[: len(one.ids)] += 1
        for path, x in oracle.inputs(one.ids).items():
            total[path] = total.get(path, 0) + torch.nn.functional.pad(x.double(), (0, 0, 0, length - len(x)))
    return {path: x / counts for path, x in total.items()}


def input_names(oracle: Oracle) -> dict[str, str]:
    """The decoder's name of what each module reads, by the module's path; embeddings have none."""
    spec = oracle._spec
    found = {spec.embedding.unembed: "unembed"}
    for layer, (attention, mlp) in enumerate(zip(spec.attentions, spec.mlps, strict=True)):
        found |= {one.module: f"a{layer}.qkv" for one in attention.maps} | {attention.out.module: f"a{layer}.o"}
        if mlp is not None:
            found |= {one.module: f"m{layer}.in" for one in mlp.maps} | {mlp.out.module: f"m{layer}.out"}
    return found | {norm.module: norm.component for norm in spec.norms}


def oracle_values(
    loaded: LoadedModel,
    prompts: Sequence[EncodedPrompt],
    name: str,
    sample: Sequence[EncodedPrompt] = (),
    centering: Centering = "position",
    oracle: Oracle | None = None,
) -> Values:
    """Every statistic of every part by autograd, prompt by prompt; `sample` is what means are over.

    The mean that a prompt of the sample is compared with is that of the others. `oracle` is a changed one, if any.
    """
    oracle, definition = oracle or Oracle(loaded), wrong_answers.get(name)
    names, weights = [component.name for component in loaded.components], oracle.weights()
    rows: dict[str, list[torch.Tensor]] = {statistic: [] for statistic in STATISTICS}
    losses: list[torch.Tensor] = []

    def add(norm: str, attribution: str, gradients: dict[str, torch.Tensor]) -> None:
        rows[norm].append(torch.stack([gradients[part].norm() for part in names]))
        rows[attribution].append(torch.stack([(gradients[part] * weights[part]).sum() for part in names]))

    for prompt in prompts:
        example: Example = (prompt.ids,)
        if definition.reads_twin and prompt.twin_ids is not None:
            example = (prompt.ids, prompt.twin_ids)
        target = _target(oracle, loaded, prompt, definition)
        add("grad_norm", "taylor", oracle.gradients(example, target))
        with torch.no_grad():
            logits = [oracle.logits(sequence) for sequence in example]
        answers = logits[0] if loaded.spec.reads_every_token else torch.stack([one[-1] for one in logits])
        losses.append(target(answers.unsqueeze(0))[0])
        if prompt.reference_ids is not None:
            with oracle.compared(oracle.inputs(prompt.reference_ids)):
                add("contrast_norm", "attribution", oracle.gradients(example, target))
        same = [one for one in sample if centering == "position" or one.prompt.template == prompt.prompt.template]
        if others := [one for one in same if one.prompt.id != prompt.prompt.id]:
            with oracle.compared(mean_inputs(oracle, others)):
                add("centered_grad_norm", "mean_attribution", oracle.gradients(example, target))
    return Values({name: torch.stack(found) for name, found in rows.items() if found}, torch.stack(losses))


def _target(oracle: Oracle, loaded: LoadedModel, prompt: EncodedPrompt, definition: WrongAnswer) -> Target:
    logits, space = oracle.logits(prompt.ids), space_of(loaded.tokenizer)
    if space is not None:
        return target_of(definition, output_context([prompt], logits.unsqueeze(0), space))
    return definition.define(loss_context([prompt], logits[-1:], loaded))


def check(found: Values, expected: Values, loaded: LoadedModel, tolerance: float, floor: float = 1e-6) -> None:
    """Every value relative to itself; what cancels, relative to what it is a difference or a sum of.

    A norm that is compared with a reference is a difference of inputs, and its measure is at least a thousandth of the
    norm without reference. An attribution is a sum of products, and its measure is that of the norm times `||W||`.
    """
    names = [component.name for component in loaded.components]
    weights = Oracle(loaded).weights()
    sizes = torch.stack([weights[part].norm() for part in names])
    torch.testing.assert_close(found.losses.double(), expected.losses, rtol=tolerance, atol=tolerance)
    assert expected.statistics.keys() <= found.statistics.keys()
    plain = expected.statistics["grad_norm"]
    for statistic, wanted in expected.statistics.items():
        is_norm = statistic in NORMS
        norm = wanted if is_norm else expected.statistics[NORMS[ATTRIBUTIONS.index(statistic)]]
        scale = torch.maximum(norm, _CANCELLED * plain) * (1 if is_norm else sizes)
        least = floor * float(scale.max())
        error = (found.statistics[statistic] - wanted).abs() / scale.clamp(min=least)
        worst = int(error.flatten().argmax())
        assert float(error.max()) <= tolerance, (statistic, names[worst % len(names)], float(error.max()))


def mixed_prompts(lengths: Sequence[int] = (7, 5, 7, 4), seed: int = 3) -> list[EncodedPrompt]:
    """Random prompts with twins and partners."""
    return with_partners(random_prompts(lengths, seed), shared=2)
