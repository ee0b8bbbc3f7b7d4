import numpy as np
import pytest
import torch
from random_prompts import VOCAB, random_prompts
from tiny_models import random_gpt2

from gbcd import wrong_answers
from gbcd.analysis.nodes import NodeMap
from gbcd.engine.engine import scene_of, target_of
from gbcd.engine.oracle import Oracle
from gbcd.evaluation.contrast import contrast_norms
from gbcd.evaluation.pairs import pair_up
from gbcd.models.load import prepared
from gbcd.prompting.tokens import EncodedPrompt


@pytest.fixture(scope="module")
def case():
    loaded = prepared("random", *random_gpt2(2, 2, 4, VOCAB, seed=0, dtype=torch.float64))
    prompts = [
        EncodedPrompt(p.prompt, p.ids, p.answer_ids, p.wrong_ids, None, p.twin_ids) for p in random_prompts([5, 7, 5])
    ]
    return loaded, prompts


@pytest.mark.parametrize("name", ["inverse_logits", "foil", "logit_difference"])
def test_contrast_is_the_norm_of_the_difference_of_full_gradients(case, name):
    loaded, prompts = case
    nodes = [node for node in NodeMap.of(loaded.components).nodes if node.is_circuit_part]
    parts = [part for part in loaded.components if part.is_circuit_part]
    pairs = pair_up(prompts, 2)
    of_parts, of_nodes = (contrast_norms(loaded, pairs, columns, [name])[name] for columns in (parts, nodes))
    oracle = Oracle(loaded)
    for row, prompt in enumerate(prompts):
        one, two = (
            oracle.gradients(
                (ids,), target_of(wrong_answers.get(name), scene_of([prompt], oracle.logits(ids)[-1:].detach(), loaded))
            )
            for ids in (prompt.ids, prompt.counterfactual_ids)
        )
        for column, part in enumerate(parts):
            assert of_parts[row, column] == pytest.approx(float((one[part.name] - two[part.name]).norm())), part.name
        squares = {node.name: 0.0 for node in nodes}
        for part, value in zip(parts, of_parts[row], strict=True):
            squares[part.node] += value**2
        np.testing.assert_allclose(of_nodes[row], np.sqrt(list(squares.values())))


def test_equal_prompts_have_no_contrast(case):
    loaded, prompts = case
    same = [EncodedPrompt(p.prompt, p.ids, p.answer_ids, p.wrong_ids, None, p.ids) for p in prompts]
    parts = [part for part in loaded.components if part.is_circuit_part]
    found = contrast_norms(loaded, pair_up(same, 2), parts, ["inverse_logits"])["inverse_logits"]
    assert np.abs(found).max() < 1e-6
