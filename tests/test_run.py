"""A study from its file to committed shards, in this process."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from fault_engines import failing_on, faulty, raising_on
from rich.console import Console
from small_runs import N_PROMPTS, N_SHARDS, WRONG_ANSWERS, finished, same, small_study, tables
from tiny_models import tiny_gpt2

from gbcd import tasks
from gbcd.commands.closing import closing_summary, unfinished
from gbcd.commands.status import show_status
from gbcd.errors import BadInput, Incomplete
from gbcd.report.caveats import warnings
from gbcd.report.reading import read_data
from gbcd.run.commits import read_commits
from gbcd.run.inputs import Inputs
from gbcd.run.results import components, summary
from gbcd.run.shards import read_plan
from gbcd.run.status import folder_status
from gbcd.run.store import Store
from gbcd.run.verification import forget, verify


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
        "calibration", "commits", "components.parquet", "inputs", "norms", "plan.json",
        "prompts", "summary.parquet",
    }  # fmt: skip
    assert len(list((out / "commits").iterdir())) == N_SHARDS
    for kind in ("prompts", "norms"):
        assert len(list((out / kind).iterdir())) == N_SHARDS


def test_the_same_study_gives_the_same_rows(reference: Path, tmp_path: Path) -> None:
    study = small_study(reference, out=str(tmp_path / "again"))
    finished(study)
    assert same(tables(study.out), tables(str(reference / "out")))
    assert summary(study.out).collect().equals(summary(str(reference / "out")).collect())


def test_a_run_goes_on_where_it_was_interrupted(reference: Path, tmp_path: Path) -> None:
    study = small_study(reference, out=str(tmp_path / "out"))
    calls: list[int] = []

    def interrupt(prompts: object) -> None:
        calls.append(1)
        if len(calls) == 5:  # two batches a shard
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        finished(study, faulty(interrupt))
    assert len(read_commits(Store(study.out))) == 2
    run = finished(study)
    assert (run.found, run.missing) == (2, ())
    assert same(tables(study.out), tables(str(reference / "out")))
    assert finished(study).found == N_SHARDS


def test_failed_prompts_are_named_until_they_are_repaired(reference: Path, tmp_path: Path) -> None:
    study = small_study(reference, out=str(tmp_path / "out"))
    poison = {"ioi/000007": "ioi/000007 is poison", "ioi/000011": "ioi/000011 is poison"}
    run = finished(study, failing_on(*poison))
    assert (run.missing, run.failed) == ((), poison)
    assert unfinished(run) == f"2 prompts failed; `gbcd verify --repair {study.out}` tries again."
    console = Console(file=io.StringIO(), record=True, width=200)
    closing_summary(run, console)
    show_status(folder_status(study.out), console)
    said = console.export_text()
    assert said.count("ioi/000007 has no values: ioi/000007 is poison") == 2
    assert f"{2 * len(WRONG_ANSWERS)} rows failed" in said
    assert f"{N_PROMPTS - 2} of {N_PROMPTS} prompts" in said
    assert set(summary(study.out).select(pl.col("n_prompts") - pl.col("n")).collect()["n_prompts"]) == {len(poison)}
    right = tables(str(reference / "out"))
    others = right["scan"].filter(~pl.col("prompt_id").is_in(list(poison)))
    assert tables(study.out)["scan"].equals(others)
    assert finished(study).failed == poison  # a commit is never replaced
    found = verify(study.out)
    assert found.failed == poison
    assert not found.is_sound
    forget(study.out, found)
    assert finished(study).failed == {}
    assert verify(study.out).is_sound
    assert same(tables(study.out), right)


def test_a_shard_that_fails_every_time_is_given_up_and_tried_again_by_the_next_run(
    reference: Path, tmp_path: Path
) -> None:
    study = small_study(reference, out=str(tmp_path / "out"))
    first = read_plan(Store(str(reference / "out"))).shards[0]
    ids = Inputs(Store(str(reference / "out")), read_plan(Store(str(reference / "out")))).ids(first)
    run = finished(study, raising_on(ids[0]))
    assert run.missing == (first.id,)
    said = f"shard 0 failed 3 times and was left out: ArithmeticError: {ids[0]} is poison"
    assert [record.message for record in run.given_up] == [said]
    assert unfinished(run) == f"1 of {N_SHARDS} shards are missing."
    assert said in "".join(warnings(read_data(study.out)))
    assert finished(study).given_up == ()
    assert same(tables(study.out), tables(str(reference / "out")))


def test_prompts_whose_gradient_is_no_number_are_kept_and_never_averaged(tmp_path: Path) -> None:
    """One name's embedding is so large that norms overflow, in a model with an unembedding of its own."""
    study = small_study(tmp_path)
    model, tokenizer = tiny_gpt2()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    name = tasks.draw("ioi", tokenizer, 1, study.seed)[0].answers[0]
    with torch.no_grad():
        model.transformer.wte.weight[tokenizer.encode(name)] = 3e38  # its square is infinite
    model.save_pretrained(study.model)
    assert finished(study).missing == ()
    found = tables(study.out)
    broken = found["prompts"].filter(status="non_finite")
    assert set(broken["prompt_id"]) == set(found["prompts"].filter(pl.col("prompt").str.contains(name))["prompt_id"])
    assert 0 < broken.height < found["prompts"].height
    assert not set(found["scan"]["prompt_id"]) & set(broken["prompt_id"])
    assert found["scan"]["grad_norm"].is_finite().all()
    summed = summary(study.out).collect()
    assert set(summed["n_prompts"] - summed["n"]) == {broken["prompt_id"].n_unique()}
    assert summed["grad_norm_mean"].is_finite().all()
    assert verify(study.out).is_sound


def test_another_study_is_refused_with_what_differs(reference: Path) -> None:
    study = small_study(reference, seed=1)
    before = (reference / "out" / "plan.json").read_bytes()
    with pytest.raises(BadInput, match=r"(?s)holds another study.*asked for\):\n  seed: 0 -> 1"):
        finished(study)
    assert (reference / "out" / "plan.json").read_bytes() == before


def test_another_model_or_version_is_refused(reference: Path, tmp_path: Path) -> None:
    study = small_study(tmp_path)
    finished(study)
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    plan["sources"]["versions"]["torch"] = "1.0"
    plan["sources"]["hashes"]["model"] = "f" * 64
    (tmp_path / "out" / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(BadInput, match=r"(?s)hashes\.model: f{12} -> .*versions\.torch: 1\.0 -> "):
        finished(study)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
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
    study = small_study(reference, out=str(tmp_path / "out"))
    calls: list[int] = []

    def fill(prompts: object) -> None:
        calls.append(1)
        if len(calls) == 5:  # two batches a shard
            (tmp_path / "out" / "norms").rename(tmp_path / "out" / "kept")
            (tmp_path / "out" / "norms").symlink_to("/dev/full")

    with pytest.raises(Incomplete, match="results cannot be stored"):
        finished(study, faulty(fill))
    (tmp_path / "out" / "norms").unlink()
    (tmp_path / "out" / "kept").rename(tmp_path / "out" / "norms")
    assert finished(study).found == 2
    assert same(tables(study.out), tables(str(reference / "out")))
