import io
import json
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import processes
import pytest
import torch
from evaluation_cases import baselines_of, context_of, effects_of
from rich.console import Console
from test_cli import gbcd
from tiny_models import saved_tiny_gpt2

from gbcd.analysis.circuits import Config, edge_names
from gbcd.analysis.stored import TemplateSums
from gbcd.commands.evaluate import _interval, _percent, show_evaluation
from gbcd.errors import BadInput
from gbcd.evaluation import baselines, planning
from gbcd.evaluation.circuit_sets import SIZES, Circuits, EdgeScore, EdgeTable, of_edges
from gbcd.evaluation.evaluate import evaluate
from gbcd.evaluation.evaluation_plan import PAIRS_PER_BLOCK, Request, TaskPlan, pair_up
from gbcd.evaluation.measured import edge_config
from gbcd.evaluation.metrics import metric_for
from gbcd.evaluation.mib import export, judge, read_importances
from gbcd.evaluation.patching import PatchedBatch
from gbcd.evaluation.places import places_of
from gbcd.evaluation.recovery import Method, Score, measured_truth, recovery_rows
from gbcd.evaluation.resampling import Draws
from gbcd.evaluation.tables import DROPS, EDGE_FAITHFULNESS, EFFECTS, EVALUATION, FAITHFULNESS
from gbcd.evaluation.work import TaskWork
from gbcd.models import load as models
from gbcd.pipeline import run_study
from gbcd.run.commits import commit_path
from gbcd.run.inputs import Inputs
from gbcd.run.shards import read_plan
from gbcd.run.store import Store
from gbcd.study import make_study

N_PAIRS = 20


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
    return evaluate(study, N_PAIRS, ablations=("resample", "mean", "zero"))


@pytest.fixture(scope="module")
def case(study):
    store = Store(study)
    plan = read_plan(store)
    loaded = models.load(plan.study.model)
    prompts = pair_up(Inputs(store, plan).sample("ioi", N_PAIRS)).usable
    return loaded, prompts, places_of(loaded.components, "node"), metric_for("logit_difference", prompts, loaded.device)


def test_tables_are_written_as_they_are_returned(study, evaluation):
    names, schemas = (
        ("evaluation", "effects", "faithfulness", "edge_faithfulness"),
        (EVALUATION, EFFECTS, FAITHFULNESS, EDGE_FAITHFULNESS),
    )
    for table, name, schema in zip(evaluation[:4], names, schemas, strict=True):
        assert table.schema == schema
        assert pl.read_parquet(Path(study) / f"{name}.parquet").equals(table)
    assert evaluation.notes == ()


def test_every_score_and_baseline_is_held_against_every_truth(evaluation):
    rows = evaluation.figures.filter(pl.col("task") == "ioi", pl.col("group") == "all")
    methods = set(rows.filter(pl.col("wrong_answer").is_null())["method"])
    assert methods == set(baselines.every_baseline())
    of_gradients = set(rows.filter(pl.col("wrong_answer") == "foil")["method"])
    assert {"grad_norm", "writing_norm", "attribution", "contrast_norm", "edges"} - of_gradients == {"edges"}
    assert set(rows["truth"].drop_nulls()) == {"resample", "mean", "zero"}
    figures = rows.group_by("method", "wrong_answer").agg(pl.col("figure").unique())
    assert all({"auroc", "auprc", "spearman", "cpr", "cmd"} <= set(found) for found in figures["figure"])
    of_edges = rows.filter(pl.col("figure") == "edge_cpr")
    assert set(of_edges["method"]) >= {"attribution_patching", "relp", "gim", "random", "attribution", "grad_norm"}
    assert evaluation.figures["n_pairs"].unique().to_list() == [N_PAIRS]


def test_an_interval_of_an_area_ends_at_zero(evaluation):
    areas = evaluation.figures.filter(pl.col("figure").is_in(["cmd", "edge_cmd", "edge_cmd_greedy"]))
    assert areas["ci_low"].min() == 0.0


def test_a_difference_is_to_the_score_that_ranks(evaluation):
    rows = evaluation.figures.filter(task="ioi", group="all", truth="resample")
    values = {key: group["value"][0] for key, group in rows.group_by("method", "wrong_answer", "figure")}
    difference = values["grad_norm", "foil", "spearman_difference"]
    assert difference == pytest.approx(
        values["grad_norm", "foil", "spearman"] - values["attribution", "foil", "spearman"]
    )
    assert ("attribution", "foil", "spearman_difference") not in values
    rows = evaluation.figures.filter(task="ioi").filter(pl.col("figure").str.starts_with("edge_cmd"))
    values = {key: group["value"][0] for key, group in rows.group_by("method", "wrong_answer", "figure")}
    assert values["relp", None, "edge_cmd_difference"] == pytest.approx(
        values["relp", None, "edge_cmd"] - values["attribution", "foil", "edge_cmd"]
    )
    assert ("attribution", "foil", "edge_cmd_difference") not in values


def blocks(prompts):
    return [prompts[start : start + PAIRS_PER_BLOCK] for start in range(0, len(prompts), PAIRS_PER_BLOCK)]


def tail_share(prompts):
    """The share of a block's tokens that resampled runs compute: those from the first difference on."""
    tails = [
        len(one.ids) - next(at for at, (a, b) in enumerate(zip(one.ids, one.reference_ids, strict=True)) if a != b)
        for one in prompts
    ]
    return max(tails) / max(len(one.ids) for one in prompts)


def test_effects_and_drops_are_the_measured_ones(study, evaluation, case):
    loaded, prompts, places, metric = case
    effects = effects_of(loaded, prompts, places, metric)
    table = evaluation.effects.filter(pl.col("task") == "ioi")
    stored = pl.read_parquet(Path(study) / "effects" / "effects.ioi.parquet")
    assert stored.schema == DROPS
    for ablation, drops in effects.drops.items():
        found = table.filter(pl.col("method") == ablation)
        assert found["component"].to_list() == [place.name for place in places]
        np.testing.assert_allclose(found["value"], drops.mean(axis=0), atol=1e-5)
        of_prompt = stored.filter(ablation=ablation, prompt_id=prompts[3].prompt.id)
        assert of_prompt["component"].to_list() == [place.name for place in places]
        np.testing.assert_allclose(of_prompt["drop"], drops[3], atol=1e-5)
    assert table["gap"][0] == pytest.approx((effects.clean - effects.counterfactual).mean(), abs=1e-5)
    cost = dict(table.select("method", "cost").unique().iter_rows())
    # 3 nodes a layer, of 2 blocks and 1 block out of 2, and the passes over prompts and counterfactuals
    assert (cost["zero"], cost["mean"]) == (6.5, 6.5)
    assert cost["resample"] == pytest.approx(
        np.average(
            [2 + 4.5 * tail_share(some) for some in blocks(prompts)], weights=[len(some) for some in blocks(prompts)]
        )
    )


def test_baselines_are_means_over_the_pairs(evaluation, case):
    loaded, prompts, _, metric = case
    context = context_of(loaded, prompts, metric)
    for name, values in baselines_of(context, "attribution_patching", "direct_effect", "gim").items():
        found = evaluation.effects.filter(task="ioi", method=name)["value"]
        np.testing.assert_allclose(found, values.mean(axis=0), rtol=1e-4, atol=1e-7)


def test_the_terminal_tells_quality_and_cost(study, evaluation):
    text = io.StringIO()
    show_evaluation(evaluation, study, Console(file=text, width=120))
    found = text.getvalue()
    assert "against resample ablation on 20 pairs (" in " ".join(found.split())
    effects = evaluation.effects.filter(task="ioi", method="resample")
    n = effects.filter((pl.col("value") / pl.col("gap")).abs() >= 0.1).height
    assert f"{n} of {effects.height} components with an effect of 10% of the gap or more" in " ".join(found.split())
    assert "ioi: circuits of edges, as MIB measures them" in found
    assert "CPR, CMD     area under faithfulness of growing circuits, higher is better" in found
    assert "Passes       forward passes over one prompt" in found
    n = pl.read_parquet(Path(study) / "summary.parquet").filter(task="ioi")["n"].max()
    assert n > N_PAIRS
    assert f"Sample       Scores of the study are means over {n} prompts, effects over {N_PAIRS} pairs" in found
    assert "baselines are computed on these very pairs" in found
    of_edges = found[found.index("ioi: circuits of edges") : found.index("induction: circuits of edges")].splitlines()
    distances = [float(line.split("]")[1].split()[0]) for line in of_edges[2:] if line]
    assert distances == sorted(distances)
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


def test_faithfulness_ends_at_the_whole_model(evaluation):
    whole = evaluation.faithfulness.filter(pl.col("size") == 1.0)
    np.testing.assert_allclose(whole["faithfulness"], 1.0, atol=1e-4)  # batches of other sizes round otherwise
    none = evaluation.faithfulness.filter(pl.col("n_components") == 0)
    np.testing.assert_allclose(none["faithfulness"], 0.0, atol=1e-4)
    keys = ["task", "wrong_answer", "method"]
    scores = evaluation.figures.filter(pl.col("figure") == "auroc").select(keys).unique()
    assert evaluation.faithfulness.join(scores, on=keys, nulls_equal=True).height == scores.height * len(SIZES)
    assert evaluation.faithfulness.height == scores.height * len(SIZES)


def test_faithfulness_of_edges_begins_at_the_counterfactual_and_ends_at_the_prompt(evaluation):
    table = evaluation.edge_faithfulness.filter(task="ioi")
    np.testing.assert_allclose(table.filter(size=1.0)["faithfulness"], 1.0, atol=1e-3)
    np.testing.assert_allclose(table.filter(n_edges=0)["faithfulness"], 0.0, atol=1e-3)
    assert set(table["ranking"]) == {"signed", "size", "greedy"}


def test_edges_are_cut_as_mib_cuts_them(case):
    cfg = edge_config(case[0])
    assert cfg is not None
    table, circuits = EdgeTable(cfg), Circuits()
    names = edge_names(cfg)
    scores = np.zeros(table.n)
    scores[[names.index("input->m0"), names.index("m0->logits"), names.index("a0.h0->a1.h1<q>")]] = -3, 2, -4
    numbers = of_edges(circuits, table, EdgeScore(Method("mine", None, 0.0), scores), "size")
    sizes = dict(zip(SIZES, numbers, strict=True))
    # three of 46 edges are 6.5 %: int(0.1 * 46) is 4, whose last is dropped with the two that lead nowhere
    assert table.n == 46
    kept = [names[edge] for edge in circuits.members["edges"][sizes[0.1]]]
    assert {"input->m0", "m0->logits"} <= set(kept)
    assert "a0.h0->a1.h1<q>" not in kept
    assert len(circuits.members["edges"][sizes[1.0]]) == table.n
    assert circuits.members["edges"][sizes[0.001]].tolist() == []
    signed = of_edges(circuits, table, EdgeScore(Method("mine", None, 0.0), scores), "signed")
    assert [names[edge] for edge in circuits.members["edges"][signed[4]]] == []
    of_nodes = table.of_nodes({"a0.h0": 1.0, "a0.h1": 2.0, "m0": 3.0, "a1.h0": 4.0, "a1.h1": 5.0, "m1": 6.0})
    by_name = dict(zip(names, of_nodes.tolist(), strict=True))
    assert (by_name["a0.h1->m1"], by_name["input->a1.h1<k>"], by_name["input->logits"]) == (2.0, 5.0, 6.0)


def test_resamples_spread_as_the_mean_does():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(400, 1))
    draws = Draws(["one"] * 400, 0)
    low, high = draws.interval(draws.means(values)[:, 0])
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.2)
    assert (low + high) / 2 == pytest.approx(values.mean())
    assert np.isnan(draws.interval(np.array([0.5, np.nan]))).all()


def test_whole_templates_are_drawn_and_scores_with_them():
    templates = [f"t{index % 8}" for index in range(80)]
    of_template = np.arange(80) % 8 * 1.0
    draws = Draws(templates, 0)
    low, high = draws.interval(draws.means(of_template))
    # eight draws of the mean of 0..7, whatever the number of prompts
    assert (high - low) / 2 == pytest.approx(2.365 * np.arange(8).std() / np.sqrt(8), rel=0.2)
    sums = TemplateSums([f"t{index}" for index in range(8)], np.full(8, 5), np.arange(8.0)[:, None] * 5)
    np.testing.assert_allclose(draws.means_of_templates(sums)[:, 0], draws.means(of_template))


def test_a_sample_of_nodes_stands_for_all():
    names, scores = [f"n{index}" for index in range(40)], np.arange(40.0)
    found = planning.sampled(names, scores, 4, seed=0)
    assert sum(found.values()) == 40
    assert {name for name, weight in found.items() if weight == 1} == {"n36", "n37", "n38", "n39"}
    assert sorted(weight for weight in found.values() if weight > 1) == [9, 9, 9, 9]
    assert planning.sampled(names, scores, None, 0) == planning.sampled(names, scores, 40, 0) == dict.fromkeys(names, 1)
    # every stratum gives its mean without bias
    values = np.random.default_rng(0).normal(size=40)
    means = [
        sum(weight * values[int(name[1:])] for name, weight in planning.sampled(names, scores, 4, seed).items()) / 40
        for seed in range(300)
    ]
    assert np.mean(means) == pytest.approx(values.mean(), abs=3 * np.std(means) / np.sqrt(300))


def test_nodes_that_stand_for_others_are_counted_so(study, tmp_path):
    copy = shutil.copytree(study, tmp_path / "copy")
    found = evaluate(str(copy), 4, top=1)
    effects = found.effects.filter(task="ioi", method="resample")
    assert effects.height == 2
    assert sorted(effects["weight"]) == [1, 5]
    text = io.StringIO()
    show_evaluation(found, str(copy), Console(file=text, width=200))
    assert "2 were ablated, 1 of them drawn to stand for 5" in " ".join(text.getvalue().split())


def test_a_perfect_score_has_perfect_figures():
    effects = np.tile([0.5, -0.3, 0.05, 0.0], (3, 1))
    truth = measured_truth("resample", effects, np.ones(3), np.arange(4))
    assert truth.members[0].tolist() == [True, True, False, False]
    score = Score(Method("effect", None, 1.0), np.abs(effects))
    rows = list(recovery_rows([score], None, [truth], {"all": np.ones(4, bool)}, Draws(["t", "t"], 0)))
    assert {row["figure"]: row["value"] for row in rows} == pytest.approx({"auroc": 1, "auprc": 1, "spearman": 1})


def test_scores_of_the_weights_by_hand(case):
    loaded, prompts, _, metric = case
    context = context_of(loaded, prompts, metric)
    found = baselines_of(context, "weight_norm", "parameter_count", "layer_index")
    names = [node.name for node in context.components]
    block = loaded.model.transformer.h[1]
    mlp = torch.cat([block.mlp.c_fc.weight.flatten(), block.mlp.c_proj.weight.flatten()])
    assert found["weight_norm"][names.index("m1")] == pytest.approx(float(mlp.norm()), rel=1e-5)
    qkv, out = block.attn.c_attn.weight.view(16, 3, 2, 8)[:, :, 1], block.attn.c_proj.weight.view(2, 8, 16)[1]
    head = torch.cat([qkv.flatten(), out.flatten()])
    assert found["weight_norm"][names.index("a1.h1")] == pytest.approx(float(head.norm()), rel=1e-5)
    assert found["parameter_count"][names.index("m1")] == mlp.numel()
    assert found["layer_index"].tolist() == [node.layer for node in context.components]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            lambda context: np.zeros(2),
            r"score 'own' gives values of shape \(2,\); wanted are 6, one for each component",
        ),
        (lambda context: context.nowhere, r"score 'own' \(.*test_evaluation.py, line \d+\): AttributeError"),
    ],
)
def test_a_score_of_one_s_own_that_fails_is_named(case, monkeypatch, values, said):
    loaded, prompts, _, metric = case
    monkeypatch.setattr(baselines, "_BASELINES", {})
    baselines.baseline("own")(values)
    with pytest.raises(BadInput, match=said):
        baselines.every_baseline()["own"].values(context_of(loaded, prompts, metric))


def test_a_baseline_has_one_name(monkeypatch):
    monkeypatch.setattr(baselines, "_BASELINES", {})
    baselines.baseline("own", 2.0)(lambda context: np.zeros(6))
    assert baselines.every_baseline()["own"].passes == 2.0
    with pytest.raises(ValueError, match="a baseline 'own' already"):
        baselines.baseline("own")(lambda context: np.zeros(6))


def test_parts_can_be_evaluated_too(study, tmp_path):
    copy = shutil.copytree(study, tmp_path / "copy")
    found = evaluate(str(copy), 4, level="part")
    assert set(found.effects["part"]) == {"q", "k", "v", "o", "in", "out"}
    assert found.edge_faithfulness.is_empty()


def test_an_interrupted_evaluation_goes_on_where_it_was(study, evaluation, tmp_path):
    copy = shutil.copytree(study, tmp_path / "copy")
    [folder] = (copy / "evaluation").iterdir()
    for stage, shard in (("effects", 1), ("circuits", 0), ("circuits", 3)):
        (folder / stage / commit_path(shard)).unlink()
    kept = (folder / "effects" / commit_path(0)).read_bytes()
    again = evaluate(str(copy), N_PAIRS, ablations=("resample", "mean", "zero"))
    for one, two in zip(evaluation[:4], again[:4], strict=True):
        assert one.equals(two)
    assert (folder / "effects" / commit_path(0)).read_bytes() == kept
    assert len(list((copy / "evaluation").iterdir())) == 1


def test_an_evaluation_that_is_killed_again_and_again_loses_and_doubles_nothing(study, evaluation, tmp_path):
    copy = shutil.copytree(study, tmp_path / "copy")
    shutil.rmtree(copy / "evaluation")
    names = [
        f"{name}.parquet" for name in ("evaluation", "effects", "faithfulness", "edge_faithfulness", "edge_scores")
    ]
    names.append("effects/effects.ioi.parquet")
    for name in names:
        (copy / name).unlink()
    words = ["evaluate", str(copy), "--pairs", str(N_PAIRS), "--ablations", "resample,mean,zero"]
    for begun in ("evaluation.json", "effects/commits/*", "circuits/commits/*"):
        process = processes.gbcd(tmp_path / "said", *words)
        while process.of.is_alive() and not list(copy.glob(f"evaluation/*/{begun}")):
            time.sleep(0.002)
        process.of.kill()
        assert process.ended()[0] == -signal.SIGKILL
    evaluate(str(copy), N_PAIRS, ablations=("resample", "mean", "zero"))
    for name in names:
        assert pl.read_parquet(copy / name).equals(pl.read_parquet(Path(study) / name))


def test_greedy_circuits_grow_from_the_logits_where_edges_have_scores(evaluation):
    rows = evaluation.edge_faithfulness.filter(task="ioi", ranking="greedy")
    assert set(rows["method"]) == {"attribution_patching", "attribution_patching_ig", "relp", "gim", "random"}
    assert set(evaluation.figures.filter(figure="edge_cmd_greedy")["method"]) == set(rows["method"])
    cfg = Config(n_layers=2, n_heads=1, parallel_attn_mlp=False, d_model=8)
    table, scores = EdgeTable(cfg), {"input->a0.h0<q>": 9.0, "a0.h0->logits": 1.0, "a0.h0->m0": 8.0, "m0->logits": 0.5}
    names, sizes = edge_names(cfg), [int(share * table.n) for share in SIZES]
    values = np.array([scores.get(name, 0.0) for name in names])
    found = {
        ranking: {
            size: {names[edge] for edge in members}
            for size, members in zip(sizes, table.cut(values, ranking), strict=True)
        }
        for ranking in ("greedy", "size")
    }
    assert (found["greedy"][1], found["greedy"][2]) == (set(), {"input->a0.h0<q>", "a0.h0->logits"})
    # the largest edges of all are no circuit before they are reached from the logits
    assert found["size"][2] == set()
    assert found["greedy"][4] == found["greedy"][23] == found["size"][4] == set(scores)


def test_circuits_are_exported_and_read_back(study, evaluation, tmp_path):
    written = export(study, tmp_path)
    assert sorted(folder.name for folder in written) == [
        "induction_model", "induction_model_logit_difference", "ioi_model", "ioi_model_logit_difference"
    ]  # fmt: skip
    content = torch.load(tmp_path / "ioi_model" / "importances.pt", weights_only=True)
    assert content["cfg"] == {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 16}
    assert content["edges_scores"].shape == content["edges_in_graph"].shape == (7, 15)
    assert content["src_nodes"] == ["input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1"]
    assert content["dst_nodes"][:8] == [f"a0.h{head}<{part}>" for part in "qkv" for head in (0, 1)] + ["m0", "a1.h0<q>"]
    scores = pl.read_parquet(Path(study) / "edge_scores.parquet").filter(task="ioi", method="attribution_patching")
    by_edge = {(row["source"], row["target"]): row["score"] for row in scores.iter_rows(named=True)}
    row, column = content["src_nodes"].index("m0"), content["dst_nodes"].index("a1.h1<k>")
    assert float(content["edges_scores"][row, column]) == pytest.approx(by_edge["m0", "a1.h1<k>"])
    one, two = (read_importances(tmp_path / "ioi_model" / f"importances.{kind}") for kind in ("pt", "json"))
    np.testing.assert_allclose(one.scores, two.scores, rtol=1e-6)
    np.testing.assert_array_equal(one.inside, two.inside)
    assert one.cfg == two.cfg
    assert one.is_complete
    assert two.is_complete


def test_a_circuit_from_a_file_is_judged(study, evaluation, tmp_path):
    status, said, _ = gbcd("export", study, "--mib", str(tmp_path))
    assert (status, said.splitlines()[-1]) == (
        0,
        f"Next         gbcd evaluate {study} --circuit {tmp_path}/ioi_model/importances.pt",
    )
    found = judge(study, tmp_path / "ioi_model" / "importances.pt", N_PAIRS).filter(task="ioi")
    table = evaluation.edge_faithfulness.filter(task="ioi", method="attribution_patching")
    for ranking in ("signed", "size"):
        wanted = table.filter(ranking=ranking)
        np.testing.assert_allclose(found.filter(circuit=ranking)["value"], wanted["faithfulness"], rtol=1e-3, atol=1e-3)
    [given] = found.filter(circuit="given").iter_rows(named=True)
    as_many = found.filter(pl.col("circuit").is_in(["as_many_signed", "as_many_size"]))
    assert as_many["size"].to_list() == [given["size"]] * 2
    assert as_many["n_edges"].max() <= given["n_edges"]
    status, said, _ = gbcd(
        "evaluate", study, "--circuit", str(tmp_path / "ioi_model" / "importances.json"), "--pairs", "4"
    )
    assert status == 0
    ioi = said[said.index("ioi: ") :]
    first, by_signed, by_size, *_ = ioi.splitlines()[2:]
    assert "faithfulness (1: the whole model)" in ioi.splitlines()[1]
    assert first.startswith("your circuit  ")
    assert by_signed.startswith("as many edges, by signed score  ")
    assert by_size.startswith("as many edges, by size  ")
    kept, *others = re.search(r"Result +(.*)", ioi)[1].split("; ")
    assert re.fullmatch(r"your circuit keeps -?\d+ % \[-?\d+, -?\d+\] of the gap", kept)
    percent = float(first.split("%", 1)[1].split()[1]) * 100
    assert float(kept.split()[3]) == pytest.approx(percent, abs=1)
    assert [other.rsplit(" ", 4)[0] for other in others] == [
        "as many edges, by signed score",
        "as many edges, by size",
    ]
    small = tmp_path / "small.pt"
    content = torch.load(tmp_path / "ioi_model" / "importances.pt", weights_only=True)
    torch.save({**content, "cfg": {**content["cfg"], "d_model": 8}}, small)
    with pytest.raises(BadInput, match="is a circuit of another model"):
        judge(study, small, 4)
    small.write_bytes(b"no circuit")
    with pytest.raises(BadInput, match="is not a circuit in the format of EAP-IG"):
        judge(study, small, 4)


def test_a_circuit_that_keeps_nothing_keeps_no_less_than_nothing():
    row = {"value": -0.0, "ci_low": -1e-9, "ci_high": 0.004}
    assert (_interval(row), _interval(row, signed=True)) == ("0.00 [0.00, 0.00]", "+0.00 [+0.00, +0.00]")
    assert _percent(row) == "0 % [0, 0]"


def test_what_a_pair_takes_is_measured_on_a_block(case, tmp_path, monkeypatch):
    """On a clock that each part of the work sets forward: 7 s a pair for baselines, 0.5 for each block that ablation
    of a node runs, 2 and 10 for circuits of nodes and of edges.
    """
    loaded, clock, ran = models.load(saved_tiny_gpt2(tmp_path, n_layers=6)), [0.0], []

    def spend(seconds):
        clock[0] += seconds * PAIRS_PER_BLOCK

    def circuits(self, some, members):
        ran.append({kind: len(found) for kind, found in members.items()})
        spend(2 * ran[-1]["nodes"] + 10 * ran[-1]["edges"])

    monkeypatch.setattr(planning, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(TaskWork, "baselines", lambda self, some: spend(7))
    monkeypatch.setattr(TaskWork, "circuits", circuits)
    monkeypatch.setattr(
        PatchedBatch, "drops", lambda self, places, how: spend(sum(6 - one.layer for one in places) / 2)
    )
    planned = TaskPlan(
        metric="logit_difference",
        n_drawn=20,
        n_pairs=20,
        n_refused=0,
        ablations=("resample", "zero"),
        nodes=dict.fromkeys((place.name for place in places_of(loaded.components, "node")), 1),
        has_edges=True,
    )
    work = TaskWork(loaded, "ioi", planned, case[1], "node", 0)
    # three nodes a layer, which run 6, 5, ... 1 blocks; a score of the study for two wrong answers, each in nine ways
    ablations, scores, cuts = 2 * 3 * (6 + 5 + 4 + 3 + 2 + 1) / 2, 2 * 9 + 10, 3 * (2 + 5) + 2 * (1 + 2 * 2)
    found = planning.seconds_per_pair(loaded, work, planned, n_wrong=2)
    nodes, edges = ran[0]["nodes"], ran[1]["edges"]
    assert min(nodes, edges) > 1
    assert ran == [{"nodes": nodes, "edges": 0}, {"nodes": 0, "edges": edges}]
    assert found == pytest.approx(7 + ablations + scores * 2 * nodes + cuts * 10 * edges)


def test_a_budget_buys_as_many_pairs_as_fit(study, monkeypatch):
    store = Store(study)
    plan = read_plan(store)
    loaded = models.load(plan.study.model)
    monkeypatch.setattr(planning, "seconds_per_pair", lambda *_: 3.0)
    monkeypatch.setattr(planning, "time", SimpleNamespace(monotonic=lambda: 1007.0))
    # seven seconds are spent; a worker has time for a block and one more, or for two blocks and one more
    cases = ((40.5, 0, 5), (40.5, 1, 5), (40.5, 2, 9), (64.0, 1, 9), (64.0, 2, 17), (64.0, 8, N_PAIRS))
    for seconds, workers, n_pairs in cases:
        request = Request(pairs=N_PAIRS, budget=seconds / 60)
        planned = planning.planned_evaluation(store, plan, loaded, request, workers, began=1000.0)
        assert [task.n_pairs for task in planned.tasks.values()] == [n_pairs, n_pairs]


def test_what_cannot_be_evaluated_is_refused(study, tmp_path):
    with pytest.raises(BadInput, match="2 prompts or more, not 1"):
        evaluate(study, 1)
    with pytest.raises(BadInput, match="no plan"):
        evaluate(str(tmp_path / "nothing"))
    copy = shutil.copytree(study, tmp_path / "copy")
    (copy / commit_path(1)).unlink()
    with pytest.raises(BadInput, match="not complete: 1 of 4 shards are missing"):
        evaluate(str(copy))


@pytest.mark.parametrize(
    ("n_prompts", "counterfactual", "problem"),
    [
        (3, None, "3 prompts cannot be patched, the first is prompts/000001: no counterfactual, and no partner"),
        (1, "Andrew gave a drink to", "prompts: not evaluated, since it takes 2 prompts"),
    ],
)
def test_a_prompt_file_that_cannot_be_patched_is_refused(tmp_path, n_prompts, counterfactual, problem):
    names = ["Aaron", "Alan", "Adam"]
    lines = [  # each of a template of its own, so that none is the partner of another
        {"prompt": f"{name} gave a drink to", "answer": "Andrew", "counterfactual": counterfactual, "template": name}
        for name in names[:n_prompts]
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({k: v for k, v in line.items() if v}) + "\n" for line in lines))
    fields = {"model": saved_tiny_gpt2(tmp_path / "model"), "prompts": str(path), "compute": {"workers": 0}}
    out = tmp_path / "out"
    run_study(make_study({**fields, "out": str(out)}), Console(quiet=True))
    before = sorted(out.rglob("*"))
    with pytest.raises(
        BadInput, match="no task has two prompts with a counterfactual of equal length, or a partner"
    ) as refused:
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


def test_a_study_of_a_gpu_is_evaluated_without_one(study, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    copy = shutil.copytree(study, tmp_path / "copy")
    shutil.rmtree(copy / "evaluation", ignore_errors=True)
    plan = json.loads((copy / "plan.json").read_text())
    plan["study"]["compute"]["device"] = "cuda"
    (copy / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(BadInput, match="device 'cuda': torch finds no GPU here"):
        evaluate(str(copy), 2, device="cuda")
    assert not (copy / "evaluation").exists()
    evaluate(str(copy), 2)
    [folder] = (copy / "evaluation").iterdir()
    assert json.loads((folder / "evaluation.json").read_text())["request"]["device"] == "cpu"


def test_prompts_that_cannot_be_patched_are_named(study, tmp_path, monkeypatch):
    stored = Inputs.sample

    def without(inputs, task, n):
        found = stored(inputs, task, n)
        keep = 5 if found[0].prompt.task == "ioi" else 1
        gone = {"counterfactual_ids": None, "partner_ids": None}
        return [one if i < keep else replace(one, **gone) for i, one in enumerate(found)]

    monkeypatch.setattr(Inputs, "sample", without)
    found = evaluate(str(shutil.copytree(study, tmp_path / "copy")), 8)
    assert set(found.figures["task"]) == {"ioi"}
    assert found.effects["n_unpatched"].unique().to_list() == [3]
    assert found.notes[0].startswith("ioi: 3 prompts cannot be patched, the first is ioi/")
    assert found.notes[-1].startswith(
        "induction: not evaluated, since it takes 2 prompts that can be patched, and there"
    )


def test_what_the_command_cannot_mean_is_refused(study):
    for flags, said in (
        (("--ablations", "mean,none"), "unknown ablation 'none'"),
        (("--nodes", "top"), "'top' is neither `all` nor `top:N`"),
        (("--device", "tpu"), "unknown device 'tpu'; did you mean cpu"),
        (("--budget", "0.00001"), "a budget of 1e-05 minutes is too small: two pairs of every task take about"),
    ):
        status, _, refused = gbcd("evaluate", study, *flags)
        assert status == 2
        assert said in " ".join(refused.split())
