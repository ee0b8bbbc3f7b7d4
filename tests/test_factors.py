import numpy as np
import polars as pl
import pytest
from small_runs import finished, small_study

from gbcd.analysis.prompt_kinds import factorise, factors
from gbcd.analysis.stored import PromptRows
from gbcd.component import Component
from gbcd.errors import BadInput

NODES = [Component(f"a0.h{head}", f"a0.h{head}", 0, head, "head", 8) for head in range(6)]
ONE, TWO = np.array([5.0, 4, 0, 0, 1, 0]), np.array([0.0, 0, 3, 3, 1, 0])


def mixed(shares, noise=0.0):
    """Prompts with a share of pattern one and the rest of pattern two, on scales of their own."""
    rng = np.random.default_rng(0)
    blends = np.outer(shares, ONE / ONE.sum()) + np.outer(1 - shares, TWO / TWO.sum())
    values = blends * rng.uniform(0.1, 10, (len(shares), 1)) + noise * rng.random((len(shares), 6))
    ids = pl.DataFrame({"prompt_id": [str(i) for i in range(len(shares))], "task": ["t"] * len(shares)})
    return PromptRows(values, ids, NODES)


def test_patterns_that_were_mixed_are_found_again():
    shares = np.concatenate([np.ones(10), np.zeros(10), np.random.default_rng(1).random(30)])
    found = factorise(mixed(shares), NODES, 2)
    assert found.explained > 0.999
    weights = found.nodes.pivot(on="factor", index="component", values="weight").drop("component").to_numpy().T
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    first = int(weights[0, 0] < weights[1, 0])
    np.testing.assert_allclose(weights[first], ONE / ONE.sum(), atol=0.02)
    np.testing.assert_allclose(weights[1 - first], TWO / TWO.sum(), atol=0.02)
    loadings = found.prompts.filter(factor=first)["loading"].to_numpy()
    np.testing.assert_allclose(loadings, shares, atol=0.04)


def test_the_result_is_the_same_each_time_and_heavy_factors_come_first():
    rows = mixed(np.linspace(0.5, 1, 40), noise=0.3)
    one, two = factorise(rows, NODES, 3), factorise(rows, NODES, 3)
    assert one.nodes.equals(two.nodes)
    assert one.prompts.equals(two.prompts)
    totals = one.prompts.group_by("factor").agg(pl.col("loading").sum()).sort("factor")["loading"]
    assert totals.is_sorted(descending=True)


def test_factors_of_a_study(tmp_path):
    study = small_study(tmp_path, wrong_answers=("inverse_logits", "foil"))
    with pytest.raises(BadInput, match=r"holds no summary.parquet"):
        factors(study.out, 2)
    finished(study)
    with pytest.raises(BadInput, match="name one wrong answer of inverse_logits, foil"):
        factors(study.out, 2)
    with pytest.raises(BadInput, match=r"\d+ prompts and 6 nodes do not give 7 factors"):
        factors(study.out, 7, "foil")
    found = factors(study.out, 2, "foil")
    assert found.nodes["component"].unique(maintain_order=True).to_list()[:3] == ["a0.h0", "a0.h1", "m0"]
    sums = found.prompts.group_by("prompt_id").agg(pl.col("loading").sum())["loading"]
    assert sums.to_list() == [pytest.approx(1)] * len(sums)
