import numpy as np
import polars as pl
import pytest
from small_runs import finished, small_study

import gbcd
from gbcd.analysis.circuits import Config
from gbcd.analysis.prompt_kinds import N_PERMUTATIONS, cluster, factorise, factors
from gbcd.analysis.stored import PromptRows
from gbcd.component import Component
from gbcd.errors import BadInput

NODES = [
    *(Component(f"a0.h{head}", f"a0.h{head}", 0, head, "head", 8) for head in range(7)),
    Component("m0", "m0", 0, None, "mlp", 8),
]
CFG = Config(n_layers=1, n_heads=7, parallel_attn_mlp=False, d_model=8)


def rows(values, templates, texts):
    n = len(values)
    prompts = pl.DataFrame({"prompt_id": [str(index) for index in range(n)], "task": ["t"] * n, "template": templates,
                            "prompt": texts, "answer_logit": [3.0] * n, "wrong_logit": [1.0] * n,
                            "correct": [index % 2 == 0 for index in range(n)]})  # fmt: skip
    return PromptRows(values, prompts, NODES)


def two_ways(n=60):
    """Two thirds of the prompts use heads 0 and 1, the others head 5, with opposite sign; sizes differ a lot."""
    rng = np.random.default_rng(0)
    patterns = np.array([[1.0, 0.8, 0, 0, 0, 0, 0, 0.3], [0, 0, 0, 0, 0, -1.0, 0, 0.3]])
    which = (np.arange(n) % 3 == 0).astype(int)
    values = (patterns[which] + 0.1 * rng.normal(size=(n, 8))) * rng.uniform(0.1, 10, (n, 1))
    templates = [("abc" if not one else "xy")[index % 2] for index, one in enumerate(which)]
    texts = [f"the {'king' if one else 'queen'} of {index}" for index, one in enumerate(which)]
    return which, rows(values, templates, texts)


def test_two_ways_of_solving_a_task_are_told_apart():
    which, table = two_ways()
    found = cluster(table, 2, CFG)
    assert found.prompts["cluster"].to_list() == which.tolist()
    assert found.descriptions["n"].to_list() == [40, 20]
    best = found.nodes.filter(pl.col("rank") == 1).sort("cluster")["component"].to_list()
    assert best == ["a0.h0", "a0.h5"]
    inside = [[name for name, node in found.circuits[number].nodes.items() if node.in_graph] for number in (0, 1)]
    assert inside == [["input", "a0.h0", "a0.h1", "logits"], ["input", "a0.h5", "m0", "logits"]]
    assert found.explained > 0.8
    assert found.p == 1 / (1 + N_PERMUTATIONS)
    assert found.template_agreement > 0.4


def test_descriptions_name_what_is_more_frequent_inside():
    _, table = two_ways()
    found = cluster(table, 2).descriptions
    words, templates = (found[name].to_list() for name in ("words", "templates"))
    assert [rows[0]["name"] for rows in words] == ["queen", "king"]
    assert words[1] == [{"name": "king", "share": 1.0, "elsewhere": 0.0}]
    assert {row["name"] for row in templates[1]} == {"x", "y"}
    assert found["margin"].to_list() == [2.0, 2.0]
    assert found["correct"].to_list() == pytest.approx([0.5, 0.5])


def test_the_control_finds_nothing_where_nodes_have_nothing_in_common():
    values = np.random.default_rng(1).normal(size=(80, 8))
    found = cluster(rows(values, ["a"] * 80, ["x"] * 80), 3)
    assert found.p > 0.05
    assert abs(found.explained - np.mean(found.permuted)) < 0.05


def test_clusters_of_a_study(tmp_path):
    study = small_study(tmp_path)
    finished(study)
    with pytest.raises(BadInput, match="name one wrong answer of logit_difference, inverse_logits"):
        gbcd.clusters(study.out, 2)
    found = gbcd.clusters(study.out, 2, wrong_answer="inverse_logits")
    assert found.descriptions["n"].sum() == len(found.prompts) > 20
    assert set(found.circuits) == {0, 1}
    again = gbcd.clusters(study.out, 2, "ioi", "inverse_logits")
    assert again.prompts.equals(found.prompts)
    with pytest.raises(BadInput, match="0 prompts do not give 2 clusters"):
        gbcd.clusters(study.out, 2, "iou", "inverse_logits")


ONE, TWO = np.array([5.0, 4, 0, 0, 1, 0]), np.array([0.0, 0, 3, 3, 1, 0])


def mixed(shares, noise=0.0):
    """Prompts with a share of pattern one and the rest of pattern two, on scales of their own."""
    rng = np.random.default_rng(0)
    blends = np.outer(shares, ONE / ONE.sum()) + np.outer(1 - shares, TWO / TWO.sum())
    values = blends * rng.uniform(0.1, 10, (len(shares), 1)) + noise * rng.random((len(shares), 6))
    ids = pl.DataFrame({"prompt_id": [str(i) for i in range(len(shares))], "task": ["t"] * len(shares)})
    return PromptRows(values, ids, NODES[:6])


def test_patterns_that_were_mixed_are_found_again():
    shares = np.concatenate([np.ones(10), np.zeros(10), np.random.default_rng(1).random(30)])
    found = factorise(mixed(shares), 2)
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
    one, two = factorise(rows, 3), factorise(rows, 3)
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
