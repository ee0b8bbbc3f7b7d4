"""A study from its file to committed shards, in this process."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from fault_engines import faulty, hungry, poisoned_by
from rich.console import Console
from small_runs import N_PROMPTS, N_SHARDS, WRONG_ANSWERS, finished, same, small_study, tables
from tiny_models import tiny_gpt2

from gbcd import tasks
from gbcd.commands.closing import unfinished
from gbcd.commands.status import show
from gbcd.errors import BadInput, Incomplete
from gbcd.pipeline import device_of
from gbcd.report.caveats import warnings
from gbcd.report.reading import read_data
from gbcd.run.commits import read_commits
from gbcd.run.inputs import Inputs
from gbcd.run.results import components, summary
from gbcd.run.shards import read_plan
from gbcd.run.standing import folder_standing
from gbcd.run.store import Store
from gbcd.run.verification import verify

KEYS = ["prompt_id", "wrong_answer"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an uninterrupted run."""
    folder = tmp_path_factory.mktemp("reference")
    finished(small_study(folder))
    return folder


def test_every_prompt_is_there_once_per_wrong_answer_and_part(reference: Path) -> None:
    found = tables(str(reference / "out"))
    n_parts = components(str(reference / "out")).collect().height
    assert found["prompts"].height == N_PROMPTS * len(WRONG_ANSWERS)
    assert found["prompts"].select("prompt_id", "wrong_answer").is_unique().all()
    assert found["scan"].height == N_PROMPTS * len(WRONG_ANSWERS) * n_parts
    assert found["scan"].select("prompt_id", "wrong_answer", "component").is_unique().all()
    assert found["scan"]["grad_norm"].is_finite().all()
    uncalibrated = found["prompts"].filter(status="uncalibrated")["prompt_id"].unique().sort()
    uncentred = found["scan"].filter(pl.col("centered_grad_norm").is_null())["prompt_id"].unique().sort()
    assert uncentred.equals(uncalibrated)
    assert summary(str(reference / "out")).collect().height > 0


def test_the_folder_is_as_the_contract_says(reference: Path) -> None:
    out = reference / "out"
    assert {path.name for path in out.iterdir()} >= {
        "calibration.safetensors", "coherence", "commits", "components.parquet", "inputs", "norms", "plan.json",
        "prompts", "summary.parquet",
    }  # fmt: skip
    assert len(list((out / "commits").iterdir())) == N_SHARDS
    for kind in ("prompts", "norms", "coherence"):
        assert len(list((out / kind).iterdir())) == N_SHARDS


def test_the_same_study_gives_the_same_rows(reference: Path, tmp_path: Path) -> None:
    study = small_study(reference).model_copy(update={"out": str(tmp_path / "again")})
    finished(study)
    assert same(tables(study.out), tables(str(reference / "out")))
    assert summary(study.out).collect().equals(summary(str(reference / "out")).collect())


def test_a_run_goes_on_where_it_was_interrupted(reference: Path, tmp_path: Path) -> None:
    study = small_study(reference).model_copy(update={"out": str(tmp_path / "out")})
    calls: list[int] = []

    def interrupt(prompts: object, batch_size: int) -> None:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        finished(study, faulty(interrupt))
    assert len(read_commits(Store(study.out))) == 2
    run = finished(study)
    assert (run.found, run.missing) == (2, ())
    assert same(tables(study.out), tables(str(reference / "out")))
    assert finished(study).found == N_SHARDS


def test_poison_prompts_cost_their_own_values_and_nothing_else(reference: Path, tmp_path: Path) -> None:
    study = small_study(reference).model_copy(update={"out": str(tmp_path / "out")})
    poison = {f"ioi/{number:06d}": f"ArithmeticError: ioi/{number:06d} is poison" for number in (7, 11)}
    run = finished(study, poisoned_by(*poison))
    assert run.missing == ()
    assert {prompt: reason for record in run.quarantined for prompt, reason in record.prompts.items()} == poison
    assert unfinished([run]) == "2 prompts without values."
    right = tables(str(reference / "out"))
    for found in (tables(study.out), tables(finished(study, poisoned_by(*poison)).out)):
        failed = found["prompts"].filter(status="failed")
        assert failed["prompt_id"].sort().to_list() == [prompt for prompt in sorted(poison) for _ in WRONG_ANSWERS]
        assert failed.select("loss", "answer_logit", "correct").null_count().row(0) == (failed.height,) * 3
        assert found["prompts"].select(KEYS).sort(KEYS).equals(right["prompts"].select(KEYS).sort(KEYS))
        others = right["scan"].filter(~pl.col("prompt_id").is_in(list(poison)))
        both = found["scan"].join(others, on=[*KEYS, "component"], how="inner", suffix="_right")
        assert both.height == found["scan"].height == others.height
        assert np.allclose(both["grad_norm"], both["grad_norm_right"], rtol=1e-4, atol=1e-6)
    assert set(summary(study.out).select(pl.col("n_prompts") - pl.col("n")).collect()["n_prompts"]) == {len(poison)}


def test_poison_prompts_are_named_until_the_same_command_finds_them_cured(reference: Path, tmp_path: Path) -> None:
    study = small_study(reference).model_copy(update={"out": str(tmp_path / "out")})
    (record,) = finished(study, poisoned_by("ioi/000007")).quarantined
    said = "ioi/000007 (ArithmeticError: ioi/000007 is poison)"
    console = Console(file=io.StringIO(), record=True, width=200)
    show(folder_standing(study.out), console)
    assert said in console.export_text()
    assert said in "".join(warnings(read_data(study.out)))
    assert verify(study.out).failed == {record.shard: ("ioi/000007",)}
    assert not verify(study.out).is_sound
    run = finished(study)
    assert (run.found, run.quarantined, unfinished([run])) == (N_SHARDS, (), None)
    assert not list((tmp_path / "out" / "quarantine").iterdir())
    assert verify(study.out).is_sound
    assert same(tables(study.out), tables(str(reference / "out")))


def test_a_failure_of_every_prompt_is_no_prompts_fault(reference: Path, tmp_path: Path) -> None:
    study = small_study(reference).model_copy(update={"out": str(tmp_path / "out")})
    first = read_plan(Store(str(reference / "out"))).shards[0]
    ids = Inputs(Store(str(reference / "out")), read_plan(Store(str(reference / "out")))).ids(first)
    run = finished(study, poisoned_by(*ids))
    assert run.missing == (first.id,)
    (record,) = run.quarantined
    assert record.in_words == f"shard 0 was given up after 4 failures: ArithmeticError: {ids[0]} is poison"
    assert unfinished([run]) == f"1 of {N_SHARDS} shards are missing."
    assert finished(study).quarantined == ()
    assert same(tables(study.out), tables(str(reference / "out")))


def test_prompts_whose_gradient_is_no_number_are_kept_and_never_averaged(tmp_path: Path) -> None:
    """One name's embedding is broken, in a model with an unembedding of its own."""
    study = small_study(tmp_path)
    model, tokenizer = tiny_gpt2()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    name = tasks.draw("ioi", tokenizer, 1, study.seed)[0].answers[0]
    with torch.no_grad():
        model.transformer.wte.weight[tokenizer.encode(name)] = torch.nan
    model.save_pretrained(study.model)
    assert finished(study).missing == ()
    found = tables(study.out)
    broken = found["prompts"].filter(status="non_finite")
    assert set(broken["prompt_id"]) == set(found["prompts"].filter(pl.col("prompt").str.contains(name))["prompt_id"])
    assert 0 < broken.height < found["prompts"].height
    assert not set(found["scan"]["prompt_id"]) & set(broken["prompt_id"])
    assert found["scan"]["grad_norm"].is_finite().all()
    assert found["coherence"]["sum_sq"].is_finite().all()
    summed = summary(study.out).collect()
    assert set(summed["n_prompts"] - summed["n"]) == {broken["prompt_id"].n_unique()}
    assert summed["grad_norm_mean"].is_finite().all()
    assert verify(study.out).is_sound


def test_out_of_memory_comes_back_with_a_smaller_batch(reference: Path, tmp_path: Path) -> None:
    study = small_study(reference).model_copy(update={"out": str(tmp_path / "out")})
    assert finished(study, hungry(2)).missing == ()
    assert {commit.batch_size for commit in read_commits(Store(study.out))} == {2}
    assert tables(study.out)["prompts"].equals(tables(str(reference / "out"))["prompts"])


def test_another_study_is_refused_with_what_differs(reference: Path) -> None:
    study = small_study(reference, seed=1)
    before = (reference / "out" / "plan.json").read_bytes()
    with pytest.raises(BadInput, match=r"(?s)holds another study.*study\.seed: 0 -> 1"):
        finished(study)
    assert (reference / "out" / "plan.json").read_bytes() == before


def test_another_model_or_version_is_refused(reference: Path, tmp_path: Path) -> None:
    study = small_study(tmp_path)
    finished(study)
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    plan["identity"]["versions"]["torch"] = "1.0"
    plan["identity"]["hashes"]["model"] = "f" * 64
    (tmp_path / "out" / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(BadInput, match=r"(?s)hashes\.model: f{64} -> .*versions\.torch: 1\.0 -> "):
        finished(study)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tasks": ("ioy",)}, "unknown task 'ioy'; did you mean ioi"),
        ({"wrong_answers": ("foyl",)}, "unknown wrong answer 'foyl'; did you mean foil"),
        ({"tasks": ("greater_than",), "prompts_per_task": 10**9}, "distinct prompts of task 'greater_than'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        finished(small_study(tmp_path, **fields))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="results cannot be kept in"):
        finished(small_study(tmp_path, out=str(tmp_path / "file" / "out")))


def test_a_full_disk_stops_the_run_and_keeps_what_is_committed(reference: Path, tmp_path: Path) -> None:
    study = small_study(reference).model_copy(update={"out": str(tmp_path / "out")})
    calls: list[int] = []

    def fill(prompts: object, batch_size: int) -> None:
        calls.append(1)
        if len(calls) == 3:
            (tmp_path / "out" / "norms").rename(tmp_path / "out" / "kept")
            (tmp_path / "out" / "norms").symlink_to("/dev/full")

    with pytest.raises(Incomplete, match="results cannot be stored"):
        finished(study, faulty(fill))
    (tmp_path / "out" / "norms").unlink()
    (tmp_path / "out" / "kept").rename(tmp_path / "out" / "norms")
    assert finished(study).found == 2
    assert same(tables(study.out), tables(str(reference / "out")))


def test_auto_is_a_gpu_only_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = small_study(tmp_path)
    auto = study.model_copy(update={"compute": study.compute.model_copy(update={"device": "auto"})})
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert device_of(auto) == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert device_of(auto) == "cuda"
    assert device_of(study) == "cpu"
