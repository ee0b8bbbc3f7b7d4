import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from small_runs import N_PROMPTS, N_SHARDS, SHARD_SIZE, finished, small_study
from synthetic_shards import COMPONENTS, WIDTH, collected, drawn, shard

from gbcd.analysis.reduce import SUMMARY, reduce, summarise
from gbcd.errors import BadInput
from gbcd.run import results
from gbcd.run.store import Store


def summary(*shards, score=None):
    table = summarise(collected(shards), COMPONENTS, score)
    assert table.schema == SUMMARY
    return table


def row(frame, component, level):
    frame = frame.filter((pl.col("component") == component) & (pl.col("level") == level))
    assert frame.height == 1
    return frame.row(0, named=True)


def without(values, *statistics):
    return {name: table for name, table in values.items() if name not in statistics}


def test_shards_that_are_read_together_or_alone_give_the_same(tmp_path, monkeypatch):
    study = small_study(tmp_path)
    finished(study)
    together = reduce(study.out)
    assert [*results.map_shards(Store(study.out), lambda shard: shard.prompts.num_rows)] == [2 * N_PROMPTS]
    monkeypatch.setattr(results, "READ_BYTES", 1)
    assert [*results.map_shards(Store(study.out), lambda shard: shard.prompts.num_rows)] == [2 * SHARD_SIZE] * N_SHARDS
    assert_frame_equal(reduce(study.out), together, rel_tol=1e-9, abs_tol=1e-12)


def test_parts_and_nodes_by_hand():
    values = drawn(6)
    frame = summary(shard(values, list("aabbcc")))
    part, node = row(frame, "a0.h1.k", "part"), row(frame, "a0.h1", "node")
    assert part["grad_norm_mean"] == pytest.approx(values["grad_norm"][:, 5].mean())
    taylor = values["taylor"][:, 5]
    assert part["taylor_mean"] == pytest.approx(np.abs(taylor).mean())
    assert part["taylor_std"] == pytest.approx(np.abs(taylor).std(ddof=1))
    assert part["taylor_signed_mean"] == pytest.approx(taylor.mean())
    assert part["taylor_sign_agreement"] == pytest.approx((np.sign(taylor) == np.sign(taylor.mean())).mean())
    norms = np.sqrt((values["grad_norm"][:, 4:8] ** 2).sum(axis=1))
    assert node["grad_norm_mean"] == pytest.approx(norms.mean())
    assert node["grad_norm_std"] == pytest.approx(norms.std(ddof=1))
    assert node["attribution_signed_mean"] == pytest.approx(values["attribution"][:, 7].mean())
    assert node["writing_norm_mean"] == pytest.approx(values["centered_grad_norm"][:, 7].mean())
    assert (node["n"], node["n_prompts"], node["n_templates"]) == (6, 6, 3)


def test_the_score_is_the_size_of_the_mean_attribution_with_its_interval():
    values = drawn(30)
    values["attribution"][:, 9] = -5 + 0.1 * values["attribution"][:, 9]  # m0.out
    values["attribution"][:, 3] = 4.0 * np.sign(values["attribution"][:, 3])  # a0.h0.o: large and of either sign
    found = row(frame := summary(shard(values, [f"t{i % 6}" for i in range(30)])), "m0", "node")
    assert found["score_name"] == "attribution"
    assert found["score"] == pytest.approx(-found["attribution_signed_mean"])
    assert (found["score_ci_low"], found["score_ci_high"]) == pytest.approx(
        (-found["attribution_signed_ci_high"], -found["attribution_signed_ci_low"])
    )
    assert found["attribution_sign_agreement"] == 1
    assert found["rank"] == 1
    mixed = row(frame, "a0.h0", "node")
    assert mixed["attribution_mean"] == pytest.approx(4)
    assert mixed["score"] < 2
    assert mixed["score_ci_low"] == 0


def test_a_score_needs_nine_prompts_in_ten():
    """One prompt of 200 with a centred norm does not rank the components (it once did, with n = 200)."""
    values = without(drawn(200), "attribution", "mean_attribution", "contrast_norm")
    values["centered_grad_norm"][1:] = np.nan
    found = row(summary(shard(values, ["a", "b"] * 100)), "m0", "node")
    assert (found["score_name"], found["n"], found["writing_norm_n"]) == ("grad_norm", 200, 1)
    assert found["score"] == found["grad_norm_mean"]
    values["centered_grad_norm"][:180] = 1.0
    found = row(summary(shard(values, ["a", "b"] * 100)), "m0", "node")
    assert (found["score_name"], found["n"]) == ("writing_norm", 180)


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ((), "attribution"),
        (("attribution", "contrast_norm"), "mean_attribution"),
        (("attribution", "mean_attribution"), "writing_norm"),
        (("attribution", "mean_attribution", "centered_grad_norm"), "grad_norm"),
    ],
)
def test_the_default_score_is_the_first_that_was_computed(missing, expected):
    found = row(summary(shard(without(drawn(4), *missing), list("abab"))), "m0.in", "part")
    assert found["score_name"] == expected
    for name in missing:
        assert (found[f"{name}_mean"], found[f"{name}_n"]) == (None, 0)


def test_a_score_by_name_goes_first_where_it_is_known():
    values = drawn(4)
    frame = summary(shard(values, list("abab")), shard(without(values, "contrast_norm"), list("abab"), "two"),
                    score="contrast_norm")  # fmt: skip
    names = frame.unique("task", maintain_order=True)["score_name"].to_list()
    assert names == ["contrast_norm", "attribution"]
    found = frame.filter(task="ioi", component="m0", level="node")
    assert found["score"][0] == pytest.approx(np.sqrt((values["contrast_norm"][:, 8:10] ** 2).sum(1)).mean())


def test_ranks_are_of_heads_and_mlps_and_ties_keep_the_order_of_components():
    values = drawn(4)
    values["attribution"][:] = np.array([1, 1, 1, 1, 1, 1, 1, 1, 5, 5, 99])
    frame = summary(shard(values, list("abab")))
    nodes = frame.filter(pl.col("level") == "node")
    assert nodes.select("component", "rank").rows() == [("a0.h0", 2), ("a0.h1", 3), ("m0", 1), ("a0.norm", None)]
    parts = frame.filter((pl.col("level") == "part") & pl.col("rank").is_not_null()).sort("rank")
    assert parts["component"].to_list()[:4] == ["m0.in", "m0.out", "a0.h0.q", "a0.h0.k"]


def test_intervals_of_ranks_are_wide_where_templates_disagree():
    values = drawn(40)
    attribution = values["attribution"]
    attribution[:] = 1.0
    attribution[:, 8:10] = -9.0
    attribution[::2, :4], attribution[1::2, 4:8] = 4.0, 4.0
    frame = summary(shard(values, [f"t{i % 10}" for i in range(40)])).filter(pl.col("level") == "node")
    bounds = dict(zip(frame["component"], frame.select("rank_ci_low", "rank_ci_high").rows(), strict=True))
    assert bounds == {"m0": (1, 1), "a0.h0": (2, 3), "a0.h1": (2, 3), "a0.norm": (None, None)}
    alone = row(summary(shard(values, ["t"] * 40)), "m0", "node")
    assert (alone["rank"], alone["rank_ci_low"], alone["n_templates"]) == (1, None, 1)


def test_prompts_that_are_not_finite_are_counted_and_in_no_average():
    values = drawn(6)
    clean = row(summary(shard({name: table[2:] for name, table in values.items()}, list("bbcc"))), "m0", "node")
    for table in values.values():
        table[0], table[1] = np.nan, np.inf
    found = row(summary(shard(values, list("aabbcc"))), "m0", "node")
    assert (found["n"], found["n_prompts"], found["n_templates"]) == (4, 6, 3)
    assert {**found, "n_prompts": 4, "n_templates": 2} == clean


def test_a_group_without_a_finite_prompt_keeps_its_rows_and_leaves_the_others_alone():
    nothing = {name: np.full((2, WIDTH), np.nan) for name in drawn(1)}
    frame = summary(shard(nothing, list("ab")), shard(drawn(4), list("abab"), task="two"))
    found = row(frame.filter(task="ioi"), "m0", "node")
    assert (found["n"], found["n_prompts"], found["score"], found["score_name"], found["rank"]) == (0, 2, *[None] * 3)
    assert row(frame.filter(task="two"), "m0", "node")["rank"] is not None


def test_the_cut_into_shards_does_not_matter_and_groups_stay_apart():
    values, templates = drawn(700), [f"t{i % 5}" for i in range(700)]
    one, two = ({name: table[cut] for name, table in values.items()} for cut in (slice(300), slice(300, None)))
    other = shard(drawn(8, seed=1), list("abcdabcd"), wrong="right_answer")
    whole = summary(shard(values, templates), other)
    cut = summary(shard(one, templates[:300]), other, shard(two, templates[300:], first=300))
    assert whole.height == 2 * (WIDTH + 4)
    for name, kind in SUMMARY.items():
        first, second = whole[name].to_list(), cut[name].to_list()
        assert first == (pytest.approx(second) if kind == pl.Float64 else second)


def test_shards_that_do_not_fit_the_components_are_refused():
    with pytest.raises(ValueError, match="values for 2 prompts and 10 components"):
        collected([shard(drawn(2), list("ab"))], COMPONENTS[:10])


def test_no_shards_give_an_empty_table():
    assert summary().height == 0


def test_a_study_is_reduced_by_a_score_that_is_known(tmp_path):
    study = small_study(tmp_path, wrong_answers=("foil",))
    finished(study)
    found = reduce(study.out, "grad_norm").filter(pl.col("rank").is_not_null())
    assert found["score_name"].unique().to_list() == ["grad_norm"]
    assert found["score"].to_list() == found["grad_norm_mean"].to_list()
    with pytest.raises(BadInput, match="unknown score 'nrom'; known: grad_norm"):
        reduce(study.out, "nrom")
