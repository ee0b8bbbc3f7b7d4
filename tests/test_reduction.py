import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from gbcd.analysis.reduce import SUMMARY, summarise
from gbcd.component import Component
from gbcd.engine.tables import COHERENCE, PROMPTS, STATISTICS, ShardTables, norms_schema

COMPONENTS = [
    *(Component(f"a0.h{head}.{part}", f"a0.h{head}", 0, head, part, 8) for head in range(2) for part in "qkvo"),
    *(Component(f"m0.{part}", "m0", 0, None, part, 16) for part in ("in", "out")),
    Component("a0.norm", "a0.norm", 0, None, "norm", 4),
]
WIDTH = len(COMPONENTS)


def shard(values, templates, coherence=(), task="ioi", wrong="foil", statistics=STATISTICS):
    """`values` is [prompts, statistics, components]; a prompt of NaN is a row with null lists."""
    missing = np.isnan(values).all(axis=(1, 2))
    columns = {
        name: [
            None if gone or name not in statistics else row for gone, row in zip(missing, values[:, index], strict=True)
        ]
        for index, name in enumerate(STATISTICS)
    }
    n = len(values)
    keys = {"prompt_id": [str(i) for i in range(n)], "task": [task] * n, "template": templates}
    norms = pa.table({**keys, "wrong_answer": [wrong] * n, **columns}, schema=norms_schema(WIDTH))
    rows = [{"task": task, "wrong_answer": wrong, "batch": 0, **row} for row in coherence]
    return ShardTables(PROMPTS.empty_table(), norms, pa.Table.from_pylist(rows, schema=COHERENCE))


def drawn(n, seed=0):
    return np.abs(np.random.default_rng(seed).normal(size=(n, 3, WIDTH)).astype(np.float32)).astype(np.float64)


def row(table, component, level):
    frame = pl.from_arrow(table).filter((pl.col("component") == component) & (pl.col("level") == level))
    assert frame.height == 1
    return frame.row(0, named=True)


def test_parts_and_nodes_by_hand():
    values = drawn(6)
    values[:, 2] -= 0.5
    table = summarise([shard(values, list("aabbcc"))], COMPONENTS)
    assert table.schema == SUMMARY
    part, node = row(table, "a0.h1.k", "part"), row(table, "a0.h1", "node")
    assert part["grad_norm_mean"] == pytest.approx(values[:, 0, 5].mean())
    assert part["taylor_mean"] == pytest.approx(np.abs(values[:, 2, 5]).mean())
    assert part["taylor_signed_mean"] == pytest.approx(values[:, 2, 5].mean())
    norms = np.sqrt((values[:, 0, 4:8] ** 2).sum(axis=1))
    assert node["grad_norm_mean"] == pytest.approx(norms.mean())
    assert node["grad_norm_std"] == pytest.approx(norms.std(ddof=1))
    assert node["grad_norm_p50"] == pytest.approx(np.sort(norms)[2], rel=0.045)
    assert node["taylor_signed_mean"] == pytest.approx(values[:, 2, 7].mean())
    assert node["cv"] == pytest.approx(node["writing_norm_std"] / node["writing_norm_mean"])
    assert (node["n"], node["n_excluded"], node["n_templates"]) == (6, 0, 3)


def test_ranks_are_of_heads_and_mlps_by_centred_norm_and_ties_keep_the_order_of_components():
    values = drawn(4)
    values[:, 1] = np.array([1, 1, 1, 1, 1, 1, 1, 1, 5, 5, 99])
    frame = pl.from_arrow(summarise([shard(values, list("abab"))], COMPONENTS))
    nodes = frame.filter(pl.col("level") == "node")
    assert nodes.select("component", "rank").rows() == [("a0.h0", 2), ("a0.h1", 3), ("m0", 1), ("a0.norm", None)]
    parts = frame.filter((pl.col("level") == "part") & pl.col("rank").is_not_null()).sort("rank")
    assert parts["component"].to_list()[:4] == ["m0.in", "m0.out", "a0.h0.q", "a0.h0.k"]


def test_intervals_of_ranks_are_wide_where_templates_disagree():
    values = drawn(40)
    values[:, 1] = 1.0
    values[:, 1, 8:10] = 9.0
    values[::2, 1, :4], values[1::2, 1, 4:8] = 4.0, 4.0
    templates = [f"t{i % 10}" for i in range(40)]
    frame = pl.from_arrow(summarise([shard(values, templates)], COMPONENTS)).filter(pl.col("level") == "node")
    bounds = dict(zip(frame["component"], frame.select("rank_ci_low", "rank_ci_high").rows(), strict=True))
    assert bounds == {"m0": (1, 1), "a0.h0": (2, 3), "a0.h1": (2, 3), "a0.norm": (None, None)}
    alone = row(summarise([shard(values, ["t"] * 40)], COMPONENTS), "m0", "node")
    assert (alone["rank"], alone["rank_ci_low"]) == (1, None)


def test_without_centring_the_score_is_the_plain_norm():
    values = drawn(4)
    table = summarise([shard(values, list("abab"), statistics=("grad_norm", "taylor"))], COMPONENTS)
    found = row(table, "m0.in", "part")
    assert found["score"] == found["grad_norm_mean"]
    assert found["centered_grad_norm_mean"] is None


def test_prompts_that_are_not_finite_are_counted_and_in_no_average():
    values = drawn(6)
    clean = row(summarise([shard(values[2:], list("bbcc"))], COMPONENTS), "m0", "node")
    values[0] = np.nan
    values[1] = np.inf
    found = row(summarise([shard(values, list("aabbcc"))], COMPONENTS), "m0", "node")
    assert (found["n"], found["n_excluded"]) == (4, 2)
    assert {**found, "n_excluded": 0} == clean


def test_a_group_without_a_finite_prompt_keeps_its_rows():
    table = summarise([shard(np.full((2, 3, WIDTH), np.nan), list("ab"))], COMPONENTS)
    found = row(table, "m0", "node")
    assert (found["n"], found["n_excluded"], found["score"], found["rank"]) == (0, 2, None, None)


def test_signal_and_noise_are_unbiased_and_add_over_parts():
    rng, gradient, rows = np.random.default_rng(0), np.array([0.3, 0.0, 0.4]), []
    for batch in range(3000):
        draws = gradient + rng.normal(size=(4, 3))
        sums = {"n": 4, "sum_sq": float((draws.sum(0) ** 2).sum()), "sq_sum": float((draws**2).sum())}
        rows += [{"component": name, "batch": batch, **sums} for name in ("m0.in", "m0.out")]
    rows.append({"component": "m0.in", "batch": -1, "n": 1, "sum_sq": 3.25, "sq_sum": 3.25})
    table = summarise([shard(drawn(4), list("abab"), rows)], COMPONENTS)
    part, node = row(table, "m0.out", "part"), row(table, "m0", "node")
    assert part["signal"] == pytest.approx(0.25, abs=0.03)
    assert part["noise"] == pytest.approx(3.0, abs=0.1)
    assert node["signal"] == pytest.approx(row(table, "m0.in", "part")["signal"] + part["signal"])
    assert row(table, "a0.h0", "node")["signal"] is None


def test_the_cut_into_shards_does_not_matter_and_groups_stay_apart():
    values, templates = drawn(700), [f"t{i % 5}" for i in range(700)]
    other = shard(drawn(8, seed=1), list("abcdabcd"), wrong="right_answer")
    whole = summarise([shard(values, templates), other], COMPONENTS)
    cut = summarise([shard(values[:300], templates[:300]), other, shard(values[300:], templates[300:])], COMPONENTS)
    assert whole.num_rows == 2 * (WIDTH + 4)
    for name in SUMMARY.names:
        one, two = whole[name].to_pylist(), cut[name].to_pylist()
        assert one == (pytest.approx(two) if SUMMARY.field(name).type == pa.float64() else two)


def test_prompts_without_a_centred_norm_are_in_the_other_averages():
    values = drawn(6)
    long = shard(values[:2], list("ab"), statistics=("grad_norm", "taylor"))
    found = row(summarise([long, shard(values[2:], list("abab"))], COMPONENTS), "m0.in", "part")
    assert (found["n"], found["n_centered"], found["n_excluded"]) == (6, 4, 0)
    assert found["grad_norm_mean"] == pytest.approx(values[:, 0, 8].mean())
    assert found["centered_grad_norm_mean"] == found["score"] == pytest.approx(values[2:, 1, 8].mean())


def test_shards_that_do_not_fit_the_components_are_refused():
    values = drawn(2)
    with pytest.raises(ValueError, match="values for 2 prompts and 10 components"):
        summarise([shard(values, list("ab"))], COMPONENTS[:10])
    strange = [{"component": "a9.h9.q", "batch": 0, "n": 2, "sum_sq": 1.0, "sq_sum": 1.0}]
    with pytest.raises(ValueError, match=r"a9\.h9\.q"):
        summarise([shard(values, list("ab"), strange)], COMPONENTS)


def test_no_shards_give_an_empty_table():
    assert summarise([], COMPONENTS).schema == SUMMARY


def test_a_node_is_scored_by_what_it_writes():
    values = drawn(50)
    table = summarise([shard(values, ["t"] * 50)], COMPONENTS)
    for node in ("a0.h0", "m0"):
        writer = row(table, f"{node}.o" if node.startswith("a") else f"{node}.out", "part")
        assert row(table, node, "node")["score"] == writer["centered_grad_norm_mean"] == writer["score"]
