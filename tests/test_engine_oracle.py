"""The engine against the float64 autograd oracle: every part, every statistic, over random shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from gbcd.engine.mean_inputs import MeanInputs
from gbcd.engine.part_norms import BatchMeans, PartNorms, all_statistics
from gbcd.models.gpt2_pass import Gpt2Pass
from gbcd.models.hooked_pass import HookedPass
from gbcd.models.taps import ModelPass
from hypothesis import given, settings
from hypothesis import strategies as st
from random_prompts import VOCAB, random_prompts
from tiny_models import random_gpt2

from gbcd import wrong_answers
from gbcd.engine.calibration import Calibration
from gbcd.engine.engine import Engine, loss_gradient, scene_of
from gbcd.engine.oracle import Oracle
from gbcd.models.load import LoadedModel, prepared
from gbcd.prompting.tokens import EncodedPrompt


class Shape(NamedTuple):
    n_layers: int
    n_heads: int
    d_head: int
    lengths: tuple[int, ...]
    seed: int


shapes = st.builds(
    Shape,
    st.integers(1, 3),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([2, 4, 8]),
    st.lists(st.integers(2, 12), min_size=1, max_size=5).map(tuple),
    st.integers(0, 10_000),
)


def loaded_model(shape: Shape, dtype: torch.dtype = torch.float32, **config: object) -> LoadedModel:
    return prepared(
        "tiny", *random_gpt2(shape.n_layers, shape.n_heads, shape.d_head, VOCAB, shape.seed, dtype, **config)
    )


class Compared(NamedTuple):
    engine: PartNorms
    expected: dict[str, torch.Tensor]  # statistic -> [unit, component]
    summed: torch.Tensor


def compare(
    loaded: LoadedModel, model_pass: ModelPass, prompts: list[EncodedPrompt], name: str, calibration: Calibration | None
) -> Compared:
    """Run both on one batch and give the engine's values beside the oracle's."""
    units = [(p.ids, p.twin_ids) if p.twin_ids else (p.ids,) for p in prompts]
    forward = model_pass.forward(units)
    target = wrong_answers.get(name).define(scene_of(prompts, forward.logits[:, 0], loaded))
    _, d_logits = loss_gradient(target, forward.logits)
    means = None
    if calibration is not None:
        task = calibration.tasks["p"]
        groups = torch.tensor([task.groups.index(calibration.group_of(p.prompt.template)) for p in prompts])
        means = BatchMeans(
            MeanInputs(task, VOCAB, loaded.device, torch.promote_types(loaded.dtype, torch.float32)), groups
        )
    norms = all_statistics(forward.backward(d_logits), loaded.components, len(prompts), means)
    return Compared(norms, *oracle_values(loaded, prompts, name, calibration))


def oracle_values(
    loaded: LoadedModel, prompts: list[EncodedPrompt], name: str, calibration: Calibration | None
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    oracle, names = Oracle(loaded), [component.name for component in loaded.components]
    weights = oracle.weights()
    rows: dict[str, list[list[float]]] = {"squares": [], "centered_squares": [], "taylor": []}
    sums: dict[str, torch.Tensor] = {}
    for prompt in prompts:
        definition = wrong_answers.get(name)
        unit = (prompt.ids, prompt.twin_ids) if definition.reads_twin and prompt.twin_ids else (prompt.ids,)
        target = definition.define(scene_of([prompt], oracle.logits(prompt.ids)[-1:], loaded))
        gradients = oracle.gradients(unit, target)
        rows["squares"].append([float(gradients[n].square().sum()) for n in names])
        rows["taylor"].append([float((gradients[n] * weights[n]).sum()) for n in names])
        for n in names:
            sums[n] = sums.get(n, 0) + gradients[n]
        if calibration is not None:
            task = calibration.tasks["p"]
            group = task.groups.index(calibration.group_of(prompt.prompt.template))
            frequencies = task.token_frequencies(VOCAB)[group]
            first = loaded.sites.embedding.first_position
            positions = torch.eye(loaded.context + first)[first:]
            tables = {"embed.token": frequencies, "embed.position": positions}
            with oracle.centered({k: v[group] for k, v in task.means.items()} | tables):
                gradients = oracle.gradients(unit, target)
            rows["centered_squares"].append([float(gradients[n].square().sum()) for n in names])
    found = {key: torch.tensor(value, dtype=torch.float64) for key, value in rows.items() if value}
    return found, torch.stack([sums[n].square().sum() for n in names])


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float, names: list[str]) -> None:
    """Relative to each value, with a floor of a millionth of the batch's largest: norms that cancel to nothing."""
    error = (found.double() - expected).abs() / expected.abs().clamp(min=1e-6 * float(expected.abs().max()))
    worst = int(error.flatten().argmax())
    assert float(error.max()) <= tolerance, (names[worst % len(names)], float(error.max()))


def check(compared: Compared, names: list[str], tolerance: float) -> None:
    for statistic, expected in compared.expected.items():
        found = getattr(compared.engine, statistic)
        if statistic != "taylor":
            found, expected = found.double().clamp(min=0).sqrt(), expected.sqrt()
        assert_close(found, expected, tolerance, names)
    assert_close(compared.engine.summed_squares.double().clamp(min=0).sqrt(), compared.summed.sqrt(), tolerance, names)


DEFINITIONS = ["logit_difference", "foil", "inverse_logits", "right_answer", "least_likely", "most_dissimilar"]


@pytest.mark.parametrize("pass_type", ["own", "hooked"])
@given(shape=shapes, name=st.sampled_from(DEFINITIONS), centering=st.sampled_from(["position", "template"]))
@settings(max_examples=20, deadline=None)
def test_every_statistic_of_every_part_equals_the_oracle(
    pass_type: str, shape: Shape, name: str, centering: str
) -> None:
    loaded = loaded_model(shape, torch.float64)
    prompts = random_prompts(shape.lengths, shape.seed)
    model_pass = Gpt2Pass(loaded.model) if pass_type == "own" else HookedPass(loaded.model, loaded.sites)
    engine = Engine(loaded, [name], batch_size=3)
    engine._pass = model_pass
    calibration = engine.calibrate(prompts, centering)
    compared = compare(loaded, model_pass, prompts, name, calibration)
    check(compared, [component.name for component in loaded.components], 1e-4)


@dataclass(frozen=True)
class Contrast:
    """Cross-entropy towards the answer on one sequence, less the same on the other: task minus counterfactual."""

    answers: Sequence[int]
    tokens: None = None
    reads_all: bool = True

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        index = torch.tensor(self.answers).view(-1, 1, 1).expand(-1, 2, 1)
        towards = logits.logsumexp(2) - logits.gather(2, index).squeeze(2)
        return towards[:, 0] - towards[:, 1]


@pytest.mark.parametrize("pass_type", [Gpt2Pass, HookedPass])
@pytest.mark.parametrize("d_head", [2, 32])
def test_long_contrasts_equal_the_oracle_by_grams_and_by_products(pass_type: Any, d_head: int) -> None:
    loaded = loaded_model(Shape(2, 2, d_head, (), 0), torch.float64)
    prompts, others = random_prompts((61, 40), seed=1), random_prompts((61, 58), seed=2)
    units = [(prompt.ids, other.ids) for prompt, other in zip(prompts, others, strict=True)]
    answers = [prompt.answer_ids[0] for prompt in prompts]
    model_pass = Gpt2Pass(loaded.model) if pass_type is Gpt2Pass else HookedPass(loaded.model, loaded.sites)
    forward = model_pass.forward(units)
    _, d_logits = loss_gradient(Contrast(answers), forward.logits)
    found = all_statistics(forward.backward(d_logits), loaded.components, len(units), None)
    oracle, names = Oracle(loaded), [component.name for component in loaded.components]
    weights = oracle.weights()
    for row, (unit, answer) in enumerate(zip(units, answers, strict=True)):
        gradients = oracle.gradients(unit, Contrast([answer]))
        squares = torch.stack([gradients[name].square().sum() for name in names])
        taylor = torch.stack([(gradients[name] * weights[name]).sum() for name in names])
        assert_close(found.squares[row].clamp(min=0).sqrt(), squares.sqrt(), 1e-8, names)
        assert_close(found.taylor[row], taylor, 1e-6, names)
