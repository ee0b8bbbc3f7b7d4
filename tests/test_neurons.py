"""Attribution of neurons: against the library's model, against their MLP, through a run to its table."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from oracle_values import loaded_model, mixed_prompts
from report_data import made_up
from rich.console import Console
from small_runs import finished, small_study
from synthetic_shards import COMPONENTS, collected, drawn, moments, shard
from tiny_models import FAMILIES

import gbcd
from gbcd.analysis.edges import neuron_table, read_neurons
from gbcd.analysis.nodes import Key
from gbcd.commands.closing import show_neurons
from gbcd.engine.engine import Engine
from gbcd.engine.oracle import Oracle
from gbcd.errors import BadInput
from gbcd.report.page import page, sections
from gbcd.report.reading import MAX_NEURONS, read_data
from gbcd.run.store import Store
from gbcd.wrong_answers.losses import TowardsTokens


def loss_rows(loaded, prompts, name, **given):
    (group,) = Engine(loaded, [name], **given)._batch(prompts)
    return group.losses[0]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_neuron_is_its_change_times_the_gradient_by_its_activation(family):
    loaded, (prompt,) = loaded_model(family), mixed_prompts((6,))
    found = loss_rows(loaded, [prompt], "foil", neurons=["m2", "m0"]).many
    oracle, read = Oracle(loaded), {}
    for layer in (0, 2):
        module = oracle.model.get_submodule(loaded.spec.mlps[layer].out.module)
        module.register_forward_pre_hook(lambda _m, inputs, layer=layer: read.update({layer: inputs[0]}))
    oracle.logits(prompt.reference_ids)
    there = {layer: x.detach() for layer, x in read.items()}
    loss = TowardsTokens([prompt.wrong_ids])(oracle.logits(prompt.ids)[-1].view(1, 1, -1)).sum()
    assert list(found) == ["m2", "m0"]
    for layer, gradient in zip(read, torch.autograd.grad(loss, list(read.values())), strict=True):
        wanted = ((read[layer] - there[layer]) * gradient).reshape(len(prompt.ids), -1).sum(0)
        torch.testing.assert_close(found[f"m{layer}"][0], wanted.detach(), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_neurons_of_an_mlp_add_up_to_its_attribution(family, steps):
    """Also in a batch of several lengths, with twins."""
    loaded = loaded_model(family)
    loss = loss_rows(loaded, mixed_prompts((6, 4)), "logit_difference", neurons=["m0", "m2"], ig_steps=steps)
    for node, values in loss.many.items():
        part = next(i for i, one in enumerate(loaded.components) if one.node == node and one.part in ("out", "down"))
        assert values.shape[1] > 24
        torch.testing.assert_close(values.sum(1), loss.statistics["attribution"][:, part], rtol=1e-9, atol=1e-12)


def test_the_table_is_of_all_prompts_and_as_wide_as_templates_make_the_mlp():
    rng = np.random.default_rng(0)
    by_template = rng.normal(size=10)[np.arange(200) % 10]
    values = {"m0": 0.3 * rng.normal(size=(200, 5)) + by_template[:, None], "m1": rng.normal(size=(200, 3))}
    statistics = drawn(200)
    statistics["attribution"] = 0.3 * rng.normal(size=(200, 11))
    statistics["attribution"][:, 9] += by_template  # m0.out
    shards = [
        shard(
            {name: table[cut] for name, table in statistics.items()},
            [f"t{index % 10}" for index in range(200)][cut],
            moments=moments({node: table[cut] for node, table in values.items()}),
        )
        for cut in (slice(0, 70), slice(70, 200))
    ]
    found = neuron_table(collected(shards), COMPONENTS)
    assert found.columns == [
        *("task", "wrong_answer", "node", "neuron", "n", "mean", "std", "ci_low", "ci_high", "sign_agreement")
    ]
    assert found["node"].to_list() == ["m0"] * 5 + ["m1"] * 3
    assert found["neuron"].to_list() == [*range(5), *range(3)]
    both = np.concatenate([values["m0"], values["m1"]], 1)
    np.testing.assert_allclose(found["mean"], both.mean(0))
    np.testing.assert_allclose(found["std"], both.std(0, ddof=1))
    np.testing.assert_allclose(found["sign_agreement"], (np.sign(both) == np.sign(both.mean(0))).mean(0))
    half = (found["ci_high"] - found["mean"]).to_numpy()
    assert half[:5] == pytest.approx(2.262 * by_template[:10].std(ddof=1) / np.sqrt(10), rel=0.15)
    np.testing.assert_allclose(half[5:], 1.972 * values["m1"].std(0, ddof=1) / np.sqrt(200), rtol=1e-3)


def test_a_run_writes_them_and_the_same_ones_in_other_batches(tmp_path: Path):
    asked = {"prompts_per_task": 16, "neurons": ("m1",), "edges": True, "ig_steps": 2}
    study = small_study(tmp_path, **asked)
    assert finished(study).missing == ()
    found, parts = read_neurons(Store(study.out)), gbcd.summary(study.out).filter(component="m1.out").collect()
    assert found["n"].unique().to_list() == [16]
    assert found.group_by("wrong_answer").len()["len"].to_list() == [64, 64]
    sums = found.group_by("wrong_answer", maintain_order=True).agg(pl.col("mean").sum())["mean"]
    np.testing.assert_allclose(sums, parts["attribution_signed_mean"], rtol=1e-4, atol=1e-6)
    for group, rows in read_data(study.out).neurons.items():
        of_group = found.filter(**group._asdict())["mean"].abs()
        assert rows["mean"].abs().to_list() == of_group.sort(descending=True).head(MAX_NEURONS).to_list()
    other = small_study(tmp_path, out=str(tmp_path / "other"), shard_size=16, **asked)
    finished(other)
    again = read_neurons(Store(other.out))
    np.testing.assert_allclose(again["mean"], found["mean"], rtol=1e-12, atol=1e-15)


def made_up_neurons() -> pl.DataFrame:
    means = [0.5, -2.0, 1.0]
    numbers = {"mean": means, "ci_low": [m - 0.1 for m in means], "ci_high": [m + 0.1 for m in means]}
    keys = {"task": "ioi", "wrong_answer": "margin", "node": "m2", "neuron": [7, 8, 9], "n": 60}
    return pl.DataFrame({**keys, **numbers, "sign_agreement": [0.9, 1.0, 0.8]})


def test_the_terminal_lists_the_largest_with_sign_and_interval():
    text = io.StringIO()
    show_neurons(made_up_neurons(), Console(file=text, width=200))
    lines = [line.split() for line in text.getvalue().splitlines()]
    assert "ioi, margin: neurons by attribution, means over 60 prompts" in text.getvalue()
    assert [line[:4] for line in lines if line[:1] == ["m2"]] == [
        ["m2", "8", "-2.00", "-2.10"],
        ["m2", "9", "+1.00", "+0.900"],
        ["m2", "7", "+0.500", "+0.400"],
    ]


def test_the_report_shows_them():
    data = replace(made_up(), neurons={Key("ioi", "margin"): made_up_neurons()})
    (section,) = [one for one in sections(data) if one.id == "neurons"]
    rows = section.charts[0].rows.tables["0"]
    assert rows.select("component", "attribution").rows() == [("m2, 7", 0.5), ("m2, 8", -2.0), ("m2, 9", 1.0)]
    assert 'id="neurons"' in page(data)
    assert "neurons" not in [one.id for one in sections(made_up())]


def test_an_mlp_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(BadInput, match=r"(?s)unknown MLP 'm7'.*Known: m0, m1"):
        finished(small_study(tmp_path, neurons=("m1", "m7")))
