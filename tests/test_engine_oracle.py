"""The engine against the float64 autograd oracle over random shapes; every family is in `test_families.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_values import check, engine_values, exact_calibration, oracle_values, with_partners
from random_prompts import VOCAB, random_prompts
from tiny_models import random_gpt2

from gbcd.engine import gram
from gbcd.engine.engine import Engine, loss_gradient, packed_for
from gbcd.engine.oracle import Oracle
from gbcd.engine.scores import ScoreTable
from gbcd.models.forward import Options
from gbcd.models.load import LoadedModel, prepared


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
    st.lists(st.integers(2, 12), min_size=1, max_size=4).map(tuple),
    st.integers(0, 10_000),
)

DEFINITIONS = ["logit_difference", "foil", "inverse_logits", "right_answer", "least_likely", "most_dissimilar"]


def loaded_model(shape: Shape, dtype: torch.dtype = torch.float32) -> LoadedModel:
    return prepared("tiny", *random_gpt2(shape.n_layers, shape.n_heads, shape.d_head, VOCAB, shape.seed, dtype))


@given(
    shape=shapes,
    name=st.sampled_from(DEFINITIONS),
    centering=st.sampled_from(["position", "template"]),
    shared=st.integers(0, 4),
)
@settings(max_examples=15, deadline=None)
def test_every_statistic_of_every_part_equals_the_oracle(shape: Shape, name: str, centering, shared: int) -> None:
    loaded = loaded_model(shape, torch.float64)
    prompts = with_partners(random_prompts(shape.lengths, shape.seed), shared)
    # every template of the prompts is in the sample, and so long
    drawn = [(one, template) for one in random_prompts(shape.lengths, shape.seed + 1) for template in ("t0", "t1")]
    sample = [
        replace(one, prompt=replace(one.prompt, id=f"sample/{number}", template=template))
        for number, (one, template) in enumerate(drawn)
    ]
    engine = Engine(loaded, [name], exact_calibration(Oracle(loaded), sample, centering))
    expected = oracle_values(loaded, prompts, name, sample, centering)
    check(engine_values(engine, prompts), expected, loaded, 1e-9)


@pytest.mark.parametrize("centering", ["position", "template"])
def test_of_a_prompt_of_the_sample_the_mean_of_the_others_is_taken_away_from_its_twin_too(centering) -> None:
    """`X - mean of the others = n / (n - 1) (X - mean)`; a twin is no part of the mean and is scaled alike."""
    loaded = loaded_model(Shape(2, 2, 4, (), 0), torch.float64)
    sample = random_prompts((6,) * 6)
    calibration = exact_calibration(Oracle(loaded), sample, centering)
    strangers = [replace(one, prompt=replace(one.prompt, id=f"not/{one.prompt.id}")) for one in sample]
    engine = Engine(loaded, ["logit_difference"], calibration)
    members, others = (engine_values(engine, batch).statistics for batch in (sample, strangers))
    n = 6 if centering == "position" else 3
    for name in ("centered_grad_norm", "mean_attribution"):
        # one matrix of two uses: its position and the rest are scaled alike
        torch.testing.assert_close(members[name], n / (n - 1) * others[name], rtol=1e-9, atol=1e-12)
    for name in ("grad_norm", "taylor"):
        torch.testing.assert_close(members[name], others[name], rtol=0, atol=0)


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


@pytest.mark.parametrize("d_head", [2, 128])
def test_long_contrasts_equal_the_oracle_by_grams_and_by_products(d_head: int) -> None:
    loaded = loaded_model(Shape(2, 2, d_head, (), 0), torch.float64)
    prompts, others = random_prompts((61, 40), seed=1), random_prompts((61, 58), seed=2)
    examples = [(prompt.ids, other.ids) for prompt, other in zip(prompts, others, strict=True)]
    assert gram.materialising_pays(61 + 61, 2 * d_head, 2 * d_head) == (d_head == 2)
    answers = [prompt.answer_ids[0] for prompt in prompts]
    run = loaded.decoder.run(packed_for(loaded, examples), Options(graph=True))
    table = ScoreTable(loaded.components, len(examples), {})
    run.backward(loss_gradient(Contrast(answers), run.logits)[1], table)
    found = table.values()
    oracle, names = Oracle(loaded), [component.name for component in loaded.components]
    weights = oracle.weights()
    for row, (example, answer) in enumerate(zip(examples, answers, strict=True)):
        gradients = oracle.gradients(example, Contrast([answer]))
        for column, name in enumerate(names):
            norm = float(gradients[name].norm())
            scale = norm * float(weights[name].norm())
            assert float(found["grad_norm"][row, column]) == pytest.approx(norm, rel=1e-10), name
            wanted = float((gradients[name] * weights[name]).sum())
            assert float(found["taylor"][row, column]) == pytest.approx(wanted, abs=1e-11 * scale), name
