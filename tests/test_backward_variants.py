"""The forward pass with other backward passes is the library's, and its plain gradients are the engine's."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import saved_tiny_gpt2

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from backward_variants import ANSWERS, VARIANTS, WRITING, forward, per_prompt
from discovery_steps.gradient_scores import RANDOM, part_values, random_token

from gbcd import tasks, wrong_answers
from gbcd.analysis.nodes import NodeMap
from gbcd.analysis.shard_values import Key
from gbcd.engine.engine import Engine
from gbcd.models import load as models
from gbcd.prompting.tokens import encode

# a control of the benchmark, and no definition that other tests should find
wrong_answers._REGISTRY.pop(RANDOM, None)


@pytest.fixture(scope="module", autouse=True)
def control():
    wrong_answers.wrong_answer(RANDOM)(random_token)
    yield
    del wrong_answers._REGISTRY[RANDOM]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    loaded = models.load(saved_tiny_gpt2(tmp_path_factory.mktemp("tiny")), "cpu", "float32")
    drawn = tasks.draw("greater_than", loaded.tokenizer, 200, 0)
    two = list(dict.fromkeys(prompt.template for prompt in drawn))[:2]
    kept = [prompt for name in two for prompt in [one for one in drawn if one.template == name][:9]]
    encoded = encode(kept, loaded.tokenizer, loaded.context)
    return loaded, encoded, Engine(loaded, wrong_answers=ANSWERS, batch_size=8).calibrate(encoded, "template")


def test_plain_writing_norms_are_those_of_the_engine(case) -> None:
    loaded, encoded, calibration = case
    nodes = NodeMap.of(loaded.components)
    tables = Engine(loaded, wrong_answers=ANSWERS[:1], batch_size=8, calibration=calibration).compute(encoded)
    values, _ = part_values(tables, Key("greater_than", ANSWERS[0]), nodes)["centered_grad_norm"]
    rankable = [index for index, node in enumerate(nodes.nodes) if node.is_circuit_part]
    found = per_prompt(loaded, encoded, VARIANTS[0], calibration.tasks["greater_than"])[ANSWERS[0], WRITING]
    np.testing.assert_allclose(found, values[nodes.writers][rankable].T, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("variant", VARIANTS[1:], ids=lambda variant: variant.name)
def test_a_variant_changes_gradients_and_not_values(case, variant) -> None:
    loaded, encoded, _ = case
    ids = torch.tensor([encoded[0].ids])
    gradients = []
    for one in (VARIANTS[0], variant):
        logits, written = forward(loaded, ids, one)
        torch.testing.assert_close(logits, loaded.model(ids).logits[:, -1])
        gradients.append(torch.autograd.grad(logits[0, 7], written[0].y)[0])
    assert not torch.allclose(*gradients, rtol=1e-2)
