"""Against values that TransformerLens computed; `transformer_lens_values.py` says how."""

import json

import numpy as np
import pytest
from evaluation_cases import baselines_of, context_of, effects_of
from transformer_lens_values import STEPS, VALUES, shared_model, shared_prompts

from gbcd.analysis.circuits import edge_names
from gbcd.engine.engine import Engine
from gbcd.evaluation.baselines import INTEGRATION_STEPS, every_baseline
from gbcd.evaluation.measured import edge_config
from gbcd.evaluation.metrics import metric_for
from gbcd.evaluation.places import places_of
from gbcd.models.load import prepared

WANTED = json.loads(VALUES.read_text())["prompts"]


@pytest.fixture(scope="module")
def case():
    loaded, prompts = prepared("shared", *shared_model()), shared_prompts()
    places = places_of(loaded.components, "node")
    return loaded, prompts, places, metric_for("logit_difference", prompts, loaded.device)


def table(statistic, names):
    return np.array([[row[statistic][name] for name in names] for row in WANTED])


@pytest.mark.parametrize("method", ["attribution_patching", "attribution_patching_ig"])
def test_attribution_is_that_of_transformer_lens(case, method):
    assert INTEGRATION_STEPS == STEPS
    found = baselines_of(context_of(case[0], case[1], case[3]), method)[method]
    np.testing.assert_allclose(found, table(method, [point.name for point in case[2]]), atol=1e-9)


def test_resample_ablation_is_that_of_transformer_lens(case):
    effects = effects_of(*case, ["resample"])
    np.testing.assert_allclose(effects.clean, [row["metric"] for row in WANTED], atol=1e-9)
    wanted = table("resample", [point.name for point in case[2]])
    assert np.abs(wanted).max() > 0.5
    np.testing.assert_allclose(effects.drops["resample"], wanted, atol=1e-9)


def test_edge_attribution_is_that_of_transformer_lens(case):
    loaded, prompts, _, metric = case
    edges = every_baseline()["attribution_patching"].edges
    assert edges is not None
    names = edge_names(edge_config(loaded))
    assert set(names) == WANTED[0]["edges"].keys()
    np.testing.assert_allclose(
        edges(context_of(loaded, prompts, metric, with_edges=True)), table("edges", names), atol=1e-9
    )


def test_the_engines_attribution_and_edges_are_those_of_transformer_lens(case):
    """Of the loss `margin`, what the job stores."""
    loaded, prompts = case[0], shared_prompts()
    engine, names = Engine(loaded, ["margin"], edges=True), [component.name for component in loaded.components]
    (group,) = engine._batch(prompts)
    (loss,) = group.losses
    np.testing.assert_allclose(loss.losses, [row["metric"] for row in WANTED], atol=1e-9)
    nodes = [point.name for point in case[2]]
    columns = [names.index(f"{node}.{'out' if node[0] == 'm' else 'o'}") for node in nodes]
    found = loss.statistics["attribution"][:, columns]
    np.testing.assert_allclose(found, table("attribution_patching", nodes), atol=1e-9)
    np.testing.assert_allclose(loss.many["edges"], table("edges", edge_names(edge_config(loaded))), atol=1e-9)
