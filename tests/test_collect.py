from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from synthetic_shards import COMPONENTS, collected, drawn, moments, shard

from gbcd.analysis import collect
from gbcd.analysis.nodes import Key
from gbcd.analysis.stored import COUNTS_FILE, EXTREMES_FILE, read_sample, read_template_sums, store_collected
from gbcd.errors import BadInput
from gbcd.run.results import COMPONENTS_FILE, encoded_components, read_stored
from gbcd.run.store import Store

IOI = Key("ioi", "foil")


def pieces(values, templates, *cuts):
    """The same prompts in several shards."""
    bounds = [0, *cuts, len(templates)]
    return [
        shard({name: table[start:stop] for name, table in values.items()}, templates[start:stop], first=start)
        for start, stop in pairwise(bounds)
    ]


@pytest.fixture
def reduced(tmp_path):
    """A folder with what 40 prompts of four templates leave; the first has no centred norm, the second no value."""
    values = drawn(40)
    values["centered_grad_norm"][0] = np.nan
    for table in values.values():
        table[1] = np.nan
    store = Store(str(tmp_path))
    store.write(COMPONENTS_FILE, encoded_components(COMPONENTS, False))
    found = collected(pieces(values, [f"t{i % 4}" for i in range(40)], 15, 30))
    store_collected(store, found, COMPONENTS)
    return store, values


def test_the_sample_has_the_values_of_heads_and_mlps(reduced):
    store, values = reduced
    sample = read_sample(store, IOI)
    assert [node.name for node in sample.nodes] == ["a0.h0", "a0.h1", "m0"]
    rows = sample.prompts["prompt_id"].str.tail(6).cast(pl.Int64).to_numpy()
    assert sorted(rows) == [0, *range(2, 40)]
    assert list(rows) != sorted(rows)
    attributions = values["attribution"][rows][:, [3, 7, 9]]
    np.testing.assert_allclose(sample.values["attribution"], attributions, rtol=1e-6)
    np.testing.assert_allclose(sample.values["writing_norm"], values["centered_grad_norm"][rows][:, [3, 7, 9]])
    assert np.isnan(sample.values["writing_norm"][list(rows).index(0)]).all()
    assert sample.prompts["prompt"].to_list() == [f"text {row % 15}" for row in rows]
    assert sample.prompts["template"].to_list() == [f"t{row % 4}" for row in rows]
    assert list(read_sample(store, IOI, ("taylor",)).values) == ["taylor"]


def test_the_sample_is_the_same_for_any_cut_and_bounded(monkeypatch):
    monkeypatch.setattr(collect, "SAMPLE", 16)
    values, templates = drawn(200), ["a", "b"] * 100
    whole = collected([shard(values, templates)]).samples[IOI]
    cut = collected(pieces(values, templates, *range(10, 200, 10))).samples[IOI]
    assert whole.height == 16
    assert whole["prompt_id"].to_list() == cut["prompt_id"].to_list()
    assert whole["attribution"].to_list() == cut["attribution"].to_list()
    assert 4 <= sum(int(name[-6:]) < 100 for name in whole["prompt_id"]) <= 12


def test_wide_models_have_smaller_samples(monkeypatch):
    monkeypatch.setattr(collect, "MAX_VALUES", 30)
    assert collected([shard(drawn(40), ["a"] * 40)]).samples[IOI].height == 10


def test_sums_by_template_add_up_to_those_of_all(reduced):
    store, values = reduced
    sums = read_template_sums(store)[IOI]
    assert sums["grad_norm"].templates == ["t0", "t1", "t2", "t3"]
    assert sums["grad_norm"].sizes.tolist() == [10, 9, 10, 10]
    assert sums["writing_norm"].sizes.tolist() == [9, 9, 10, 10]
    np.testing.assert_allclose(
        sums["attribution_signed"].sums[2, :11], values["attribution"][2::4].sum(axis=0), rtol=1e-6
    )
    np.testing.assert_allclose(sums["attribution"].sums[2, :11], np.abs(values["attribution"][2::4]).sum(0), rtol=1e-6)


def test_extremes_are_of_all_prompts_and_of_every_score(reduced):
    store, values = reduced
    found = read_stored(store, EXTREMES_FILE).filter(statistic="attribution", end="most")
    responses = np.linalg.norm(values["attribution"][:, [3, 7, 9]], axis=1)
    order = np.argsort(-np.nan_to_num(responses, nan=-1.0))[: collect.EXTREMES].tolist()
    assert found["prompt_id"].str.tail(6).cast(pl.Int64).to_list() == order
    np.testing.assert_allclose(found["response"], responses[order], rtol=1e-6)
    least = read_stored(store, EXTREMES_FILE).filter(statistic="writing_norm", end="least")["response"]
    assert least.is_sorted()
    assert len(least) == collect.EXTREMES


def test_prompts_are_counted_by_what_is_said_of_them(tmp_path):
    one = shard(drawn(3), list("aba"), above_wrong=[True, False, None], reference=["partner", "none", "none"])
    two = shard(drawn(2), list("ab"), first=3, above_wrong=[True, True], reference=["partner"] * 2)
    store_collected(Store(str(tmp_path)), collected([one, two]), COMPONENTS)
    counts = read_stored(Store(str(tmp_path)), COUNTS_FILE)
    of = {column: dict(rows.select("value", "n").iter_rows()) for (column,), rows in counts.group_by("column")}
    assert of == {
        "status": {"ok": 5},
        "above_wrong": {"true": 3, "false": 1, None: 1},
        "reference": {"partner": 3, "none": 2},
    }


def test_a_folder_that_was_not_reduced_says_so(tmp_path):
    store = Store(str(tmp_path))
    store.write(COMPONENTS_FILE, encoded_components(COMPONENTS, False))
    for read in (read_template_sums, lambda store: read_sample(store, IOI)):
        with pytest.raises(BadInput, match="run the study, or `gbcd reduce "):
            read(store)


def test_a_study_all_of_whose_prompts_failed_is_read_as_empty(tmp_path):
    store = Store(str(tmp_path))
    store_collected(store, collected([]), COMPONENTS)
    assert read_template_sums(store) == {}
    assert read_stored(store, EXTREMES_FILE).is_empty()


def test_edges_are_merged_exactly():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(30, 5))
    tables = [moments({"edges": rows}) for rows in np.split(values, [7, 20])]
    found = collected([shard(drawn(2), ["a", "b"], moments=table) for table in tables]).many[IOI].by_statistic["edges"]
    assert found.n == 30
    np.testing.assert_allclose(found.mean, values.mean(0))
    np.testing.assert_allclose(found.estimate().std, values.std(0, ddof=1))
    np.testing.assert_array_equal(found.n_positive, (values > 0).sum(0))
