import io
import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console
from tiny_models import saved_tiny_gpt2

from gbcd.analysis.circuit_files import load_circuit
from gbcd.analysis.nodes import NodeMap
from gbcd.analysis.shard_values import Key
from gbcd.commands.evaluate import show_evaluation
from gbcd.errors import BadInput
from gbcd.evaluation import baselines
from gbcd.evaluation.aggregation import aggregation_rows
from gbcd.evaluation.agreement import SIZES
from gbcd.evaluation.baselines import Asked, baseline_scores
from gbcd.evaluation.edges import edge_attribution
from gbcd.evaluation.evaluate import evaluate
from gbcd.evaluation.faithfulness import CircuitRunner, faithfulness_curves, taken_apart
from gbcd.evaluation.interventions import measure_effects
from gbcd.evaluation.metrics import metric_for
from gbcd.evaluation.pairs import pair_up
from gbcd.evaluation.places import places_of
from gbcd.evaluation.recovery import Score, measured_truth, recovery_rows
from gbcd.evaluation.replicas import interval, means, poisson_weights, score_replicas
from gbcd.evaluation.tables import AGGREGATION, EFFECTS, EVALUATION, FAITHFULNESS
from gbcd.models import load as models
from gbcd.pipeline import run_study
from gbcd.run.commits import commit_path
from gbcd.run.inputs import Inputs
from gbcd.run.results import read_components, shard_tables
from gbcd.run.shards import read_plan
from gbcd.run.store import Store
from gbcd.study import make_study

N_PAIRS = 12


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    fields = {
        "model": saved_tiny_gpt2(folder / "model"),
        "tasks": ["ioi", "induction"],
        "prompts_per_task": 24,
        "wrong_answers": ["foil", "logit_difference"],
        "calibration_prompts": 24,
        "out": str(folder / "out"),
        "compute": {"workers": 0, "shard_size": 12},
    }
    run_study(make_study(fields), Console(quiet=True))
    return fields["out"]


@pytest.fixture(scope="module")
def evaluation(study):
    return evaluate(study, n_pairs=N_PAIRS)


@pytest.fixture(scope="module")
def case(study):
    store = Store(study)
    plan = read_plan(store)
    loaded = models.load(plan.study.model)
    prompts = Inputs(store, plan).sample("ioi", N_PAIRS)
    places = places_of(loaded.components, "node")
    return loaded, pair_up(prompts, 32), places, metric_for("logit_difference", prompts, loaded.device)


def test_tables_are_written_as_they_are_returned(study, evaluation):
    names, schemas = (
        ("evaluation", "effects", "faithfulness", "aggregation"),
        (EVALUATION, EFFECTS, FAITHFULNESS, AGGREGATION),
    )
    for table, name, schema in zip(evaluation[:4], names, schemas, strict=True):
        assert table.schema == schema
        assert pl.read_parquet(Path(study) / f"{name}.parquet").equals(table)
    assert evaluation.notes == ()


def test_every_score_and_baseline_is_held_against_every_truth(evaluation):
    rows = evaluation.figures.filter(pl.col("task") == "ioi", pl.col("group") == "all")
    methods = set(rows.filter(pl.col("wrong_answer").is_null())["method"])
    assert methods == {
        *("attribution_patching", "attribution_patching_ig", "hisp", "direct_effect"),
        *("weight_norm", "layer_index", "parameter_count", "random"),
    }
    of_gradients = rows.filter(pl.col("wrong_answer") == "foil")
    assert set(of_gradients["method"]) == {
        "grad_norm",
        "centered_grad_norm",
        "writing_norm",
        "taylor",
        "taylor_signed",
    }
    assert set(rows["truth"].drop_nulls()) == {"resample", "mean", "zero"}
    figures = rows.group_by("method", "wrong_answer").agg(pl.col("figure").unique())
    wanted = {"auroc", "auroc_pessimistic", "auprc", "spearman", "stability", "cpr", "cmd"}
    assert all(wanted <= set(found) for found in figures["figure"])
    assert rows.filter(pl.col("figure") == "completeness")["method"].unique().to_list() == [
        "grad_norm"
    ]  # too few are centred
    assert evaluation.figures["n_pairs"].unique().to_list() == [N_PAIRS]


def test_edges_are_scored_by_edge_attribution(study, evaluation, case):
    loaded, pairs, _, metric = case
    written = load_circuit(f"{study}/circuit_edges.ioi.foil.json")
    of_nodes = load_circuit(study, "ioi", "foil")
    assert {name for name, node in written.nodes.items() if node.in_graph} == {
        name for name, node in of_nodes.nodes.items() if node.in_graph
    }
    assert written.nodes["m1"].score == pytest.approx(of_nodes.nodes["m1"].score)
    wanted = edge_attribution(loaded, pairs, metric, written.cfg)
    assert written.edges.keys() == of_nodes.edges.keys()
    assert {name: edge.score for name, edge in written.edges.items()} == pytest.approx(
        {name: wanted[name] for name in written.edges}
    )
    assert min(wanted.values()) < 0 < max(wanted.values())


def test_the_terminal_tells_quality_and_cost(study, evaluation):
    text = io.StringIO()
    show_evaluation(evaluation, study, Console(file=text, width=120))
    found = text.getvalue()
    # 3 nodes a layer, of 2 blocks and 1 block out of 2, and the passes over prompts and counterfactuals
    assert "against resample ablation on 12 pairs (6.5 forward passes over each)" in found
    line = next(line for line in found.splitlines() if line.strip().startswith("attribution_patching_ig"))
    assert line.split()[-1] == "11"


def test_intervals_hold_the_value_and_costs_are_told(evaluation):
    spearman = evaluation.figures.filter(pl.col("figure") == "spearman", pl.col("group") == "all")
    defined = spearman.filter(pl.col("value").is_not_nan())
    assert defined.select((pl.col("value").is_between("ci_low", "ci_high")).all()).item()
    assert (defined["ci_high"] - defined["ci_low"]).max() > 0.1
    cost = dict(evaluation.figures.select("method", "cost").filter(pl.col("method") != "grad_norm").iter_rows())
    assert (cost["attribution_patching"], cost["attribution_patching_ig"], cost["layer_index"]) == (3, 11, 0)
    of_norm = evaluation.figures.filter(pl.col("method") == "grad_norm")
    assert dict(of_norm.select("wrong_answer", "cost").iter_rows()) == {"foil": 2, "logit_difference": 4}


def test_effects_are_the_measured_ones(evaluation, case):
    effects = measure_effects(*case)
    table = evaluation.effects.filter(pl.col("task") == "ioi")
    for ablation, drops in effects.drops.items():
        found = table.filter(pl.col("method") == ablation)
        assert found["component"].to_list() == [point.name for point in case[2]]
        np.testing.assert_allclose(found["value"], drops.mean(axis=0), atol=1e-6)
        assert found["cost"][0] == effects.cost[ablation]
    assert table["gap"][0] == pytest.approx((effects.clean - effects.counterfactual).mean())


def test_faithfulness_ends_at_the_whole_model(evaluation):
    whole = evaluation.faithfulness.filter(pl.col("size") == 1.0)
    np.testing.assert_allclose(whole["faithfulness"], 1.0)
    none = evaluation.faithfulness.filter(pl.col("n_components") == 0)
    np.testing.assert_allclose(none["faithfulness"], 0.0, atol=1e-12)
    keys = ["task", "wrong_answer", "method"]
    scores = evaluation.figures.filter(pl.col("figure") == "auroc").select(keys).unique()
    assert evaluation.faithfulness.join(scores, on=keys, nulls_equal=True).height == scores.height * len(SIZES)
    assert evaluation.faithfulness.height == scores.height * len(SIZES)


def test_the_estimate_of_a_score_is_the_mean_of_the_summary(study):
    components = read_components(Store(study))
    found = score_replicas(shard_tables(Store(study)), components, ["a1.h0", "m1"], seed=0)
    again = score_replicas(shard_tables(Store(study)), components, ["a1.h0", "m1"], seed=0)
    keep = (pl.col("task") == "ioi", pl.col("wrong_answer") == "foil", pl.col("level") == "node")
    summary = pl.read_parquet(Path(study) / "summary.parquet").filter(*keep)
    for statistic in ("grad_norm", "centered_grad_norm", "taylor"):
        replicas = found[Key("ioi", "foil")][statistic]
        wanted = [summary.filter(component=name)[f"{statistic}_mean"][0] for name in ("a1.h0", "m1")]
        assert replicas[0].tolist() == pytest.approx(wanted)
        np.testing.assert_array_equal(replicas, again[Key("ioi", "foil")][statistic])
        assert replicas[1:, 0].std() > 0
    signed = summary.filter(component="m1")["taylor_signed_mean"][0]
    assert found[Key("ioi", "foil")]["taylor_signed"][0, 1] == pytest.approx(abs(signed))


def test_replicas_spread_as_the_mean_does():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(400, 1))
    replicas = means(poisson_weights(400, rng), values)[:, 0]
    low, high = interval(replicas)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.2)
    assert (low + high) / 2 == pytest.approx(values.mean())
    assert interval(replicas, lowest=replicas[0])[0] == replicas[0]
    assert np.isnan(interval(np.array([0.5, np.nan]))).all()


def test_a_perfect_score_has_perfect_figures():
    effects = np.tile([0.5, -0.3, 0.05, 0.0], (3, 1))
    truth = measured_truth("resample", effects, np.ones(3))
    assert truth.members[0].tolist() == [True, True, False, False]
    score = Score("effect", None, np.abs(effects), 1.0)
    rows = list(recovery_rows([score], [truth], {"all": np.ones(4, bool)}))
    assert {row["figure"]: row["value"] for row in rows} == pytest.approx(
        {"stability": 1, "auroc": 1, "auroc_pessimistic": 1, "auprc": 1, "spearman": 1}
    )


def test_circuits_are_cut_by_score_and_taken_apart(case):
    loaded, pairs, places, metric = case
    runner = CircuitRunner(loaded, pairs, places, metric, np.ones((2, N_PAIRS)))
    scores = np.tile(np.arange(len(places), dtype=np.float64), (2, 1))
    curves = faithfulness_curves(runner, [Score("by_index", None, scores, 0.0)])
    half = next(row for row in curves.rows if row["size"] == 0.5)
    last_three = frozenset(range(len(places) - 3, len(places)))
    nothing, everything, circuit = (found[0] for found in runner.run([frozenset(), runner.everything, last_three]))
    assert half["n_components"] == 3
    assert half["faithfulness"] == pytest.approx((circuit - nothing) / (everything - nothing))
    found = {row["figure"]: row["value"] for row in taken_apart(runner, Score("by_index", None, scores, 0.0), seed=0)}
    only = len(places) - 1
    empty, alone, without = (
        found[0] for found in runner.run([frozenset(), frozenset([only]), runner.everything - {only}])
    )
    assert found["minimality"] == pytest.approx(abs(alone - empty) / (everything - nothing))
    assert found["completeness"] == pytest.approx(abs(without - empty) / (everything - nothing))


def test_aggregation_is_over_blocks_of_prompts(study, evaluation):
    table = evaluation.aggregation.filter(task="ioi", wrong_answer="foil", method="grad_norm").sort("n")
    assert table.select("n", "n_blocks").rows() == [(1, 24), (2, 12), (5, 4), (10, 2), (20, 1)]
    truth, score = np.array([3.0, -2.0, 1.0]), np.array([3.0, 2.0, 1.0])
    noise = np.random.default_rng(0).normal(scale=5, size=(3, 4000))
    rows = list(aggregation_rows({"grad_norm": score[:, None] + noise}, truth, truth > 2))
    assert rows[0]["spearman_mean"] < 0.4 < 0.99 < rows[-1]["spearman_mean"]
    assert rows[0]["auroc_std"] > rows[-1]["auroc_std"] == 0


def test_scores_of_the_weights_by_hand(case):
    loaded, pairs = case[0], case[1]
    nodes = [node for node in NodeMap.of(loaded.components).nodes if node.is_circuit_part]
    asked = Asked(loaded, pairs, nodes, np.random.default_rng(0))
    found = {score.method: score.replicas[0] for score in baseline_scores(asked, np.ones((1, len(pairs.encoded))))}
    names = [node.name for node in nodes]
    block = loaded.model.transformer.h[1]
    mlp = torch.cat([block.mlp.c_fc.weight.flatten(), block.mlp.c_proj.weight.flatten()])
    assert found["weight_norm"][names.index("m1")] == pytest.approx(float(mlp.norm()), rel=1e-5)
    qkv, out = block.attn.c_attn.weight.view(16, 3, 2, 8)[:, :, 1], block.attn.c_proj.weight.view(2, 8, 16)[1]
    head = torch.cat([qkv.flatten(), out.flatten()])
    assert found["weight_norm"][names.index("a1.h1")] == pytest.approx(float(head.norm()), rel=1e-5)
    assert found["parameter_count"][names.index("m1")] == mlp.numel()
    assert found["layer_index"].tolist() == [node.layer for node in nodes]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (lambda asked: np.zeros(2), r"score 'own' gives values of shape \(2,\); wanted are 6, one for each component"),
        (lambda asked: asked.nowhere, r"score 'own' \(.*test_evaluation.py, line \d+\): AttributeError"),
    ],
)
def test_a_score_of_one_s_own_that_fails_is_named(case, monkeypatch, values, said):
    loaded, pairs, places, _ = case
    monkeypatch.setattr(baselines, "_BASELINES", {})
    baselines.baseline("own")(values)
    asked = Asked(loaded, pairs, places, np.random.default_rng(0))  # pyright: ignore
    with pytest.raises(BadInput, match=said):
        baseline_scores(asked, np.ones((1, len(pairs.encoded))))


def test_a_score_of_one_s_own_is_a_mean_over_prompts_with_replicas(case, monkeypatch):
    loaded, pairs = case[0], case[1]
    monkeypatch.setattr(baselines, "_BASELINES", {})
    nodes = NodeMap.of(loaded.components).nodes
    values = np.random.default_rng(1).random((len(pairs.encoded), 3))
    baselines.baseline("own", cost=2.0)(lambda asked: values)
    with pytest.raises(ValueError, match="a baseline 'own' already"):
        baselines.baseline("own")(lambda asked: values)
    weights = poisson_weights(len(pairs.encoded), np.random.default_rng(2))
    [found] = baseline_scores(Asked(loaded, pairs, nodes[:3], np.random.default_rng(0)), weights)
    assert (found.method, found.wrong_answer, found.cost) == ("own", None, 2.0)
    np.testing.assert_allclose(found.replicas[0], values.mean(axis=0))
    np.testing.assert_allclose(found.replicas[7], np.average(values, axis=0, weights=weights[7]))


def test_parts_can_be_evaluated_too(study, tmp_path):
    copy = shutil.copytree(study, tmp_path / "copy")
    found = evaluate(str(copy), n_pairs=4, level="part")
    assert set(found.effects["part"]) == {"q", "k", "v", "o", "in", "out"}
    assert "direct_effect" not in set(found.effects["method"])


def test_what_cannot_be_evaluated_is_refused(study, tmp_path):
    with pytest.raises(BadInput, match="at least 2"):
        evaluate(study, n_pairs=1)
    with pytest.raises(BadInput, match="no plan"):
        evaluate(str(tmp_path / "nothing"))
    copy = shutil.copytree(study, tmp_path / "copy")
    (copy / commit_path(1)).unlink()
    with pytest.raises(BadInput, match="not complete: 1 of 4 shards are missing"):
        evaluate(str(copy))


@pytest.mark.parametrize(
    ("n_prompts", "counterfactual", "problem"),
    [
        (3, None, "3 prompts cannot be patched, the first is prompts/000001: no counterfactual"),
        (1, "Andrew gave a drink to", "prompts: not evaluated, since it takes 2 prompts"),
    ],
)
def test_a_prompt_file_that_cannot_be_patched_is_refused(tmp_path, n_prompts, counterfactual, problem):
    names = ["Aaron", "Alan", "Adam"]
    lines = [
        {"prompt": f"{name} gave a drink to", "answer": "Andrew", "counterfactual": counterfactual}
        for name in names[:n_prompts]
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({k: v for k, v in line.items() if v}) + "\n" for line in lines))
    fields = {"model": saved_tiny_gpt2(tmp_path / "model"), "prompts": str(path), "compute": {"workers": 0}}
    out = tmp_path / "out"
    run_study(make_study({**fields, "out": str(out)}), Console(quiet=True))
    before = sorted(out.rglob("*"))
    with pytest.raises(BadInput, match="no task has two prompts with a counterfactual of equal length") as refused:
        evaluate(str(out))
    assert problem in str(refused.value)
    assert sorted(out.rglob("*")) == before


def test_another_model_under_the_same_name_is_refused(study, tmp_path):
    copy = shutil.copytree(study, tmp_path / "copy")
    plan = (copy / "plan.json").read_text()
    name = read_plan(Store(study)).study.model
    (copy / "plan.json").write_text(plan.replace(name, saved_tiny_gpt2(tmp_path / "other", seed=1)))
    with pytest.raises(BadInput, match="is of another model"):
        evaluate(str(copy))


def test_prompts_that_cannot_be_patched_are_named(study, tmp_path, monkeypatch):
    from gbcd.evaluation import evaluate as evaluation

    stored = Inputs.sample

    def without(inputs, task, n):
        from dataclasses import replace

        found = stored(inputs, task, n)
        keep = 5 if found[0].prompt.task == "ioi" else 1
        return [
            replace(one, counterfactual_ids=one.counterfactual_ids if i < keep else None) for i, one in enumerate(found)
        ]

    monkeypatch.setattr(Inputs, "sample", without)
    found = evaluation.evaluate(str(shutil.copytree(study, tmp_path / "copy")), n_pairs=8)
    assert set(found.figures["task"]) == {"ioi"}
    assert found.effects["n_unpatched"].unique().to_list() == [3]
    assert found.notes[0].startswith("ioi: 3 prompts cannot be patched, the first is ioi/")
    assert found.notes[-1].startswith(
        "induction: not evaluated, since it takes 2 prompts that can be patched, and there"
    )
