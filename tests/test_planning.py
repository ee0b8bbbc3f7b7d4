"""What planning settles for good: the batch size, and which prompts the calibration sample does not reach."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_prompts import random_prompts
from small_runs import finished, small_study
from tiny_models import small_tokenizer, tiny_gpt2
from transformers import GPT2Config, GPT2LMHeadModel

from gbcd.engine.calibration import MIN_PROMPTS
from gbcd.models.load import prepared
from gbcd.run import batch_size
from gbcd.run.calibration_reach import CalibrationReach, settled
from gbcd.run.norms_work import read_means
from gbcd.run.planning import open_plans
from gbcd.run.results import prompts, scan
from gbcd.study import Compute


def test_a_batch_size_found_from_memory_is_settled_by_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = small_study(tmp_path).model_copy(update={"compute": Compute(workers=0, device="cpu", shard_size=40)})
    monkeypatch.setattr(batch_size, "machine_bytes", lambda: 8e6)
    (first,) = open_plans(study, "cpu")
    assert 1 < first.plan.study.batch_size < 32
    monkeypatch.setattr(batch_size, "machine_bytes", lambda: 8e12)
    (again,) = open_plans(study, "cpu")
    assert again.resumed
    assert again.plan.study.batch_size == first.plan.study.batch_size
    (elsewhere,) = open_plans(study.model_copy(update={"out": str(tmp_path / "other")}), "cpu")
    assert elsewhere.plan.study.batch_size == 32


@given(st.integers(1, 200), st.integers(1, 2), st.integers(1, 300), st.floats(1e3, 1e12))
def test_batches_are_powers_of_two_within_shard_and_memory(
    tokens: int, sequences: int, shard: int, room: float
) -> None:
    loaded = prepared("tiny", *tiny_gpt2())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_size, "machine_bytes", lambda: room / batch_size.SHARE)
        found = batch_size.fitting(loaded, tokens, sequences, "cpu", shard)
    assert found.bit_count() == 1
    assert found <= min(shard, batch_size.LARGEST_ON_PROCESSOR)
    assert found == 1 or found * batch_size.bytes_per_prompt(loaded, tokens, sequences) <= room


def test_the_memory_of_full_size_gpt2_is_estimated_as_it_was_measured() -> None:
    with torch.device("meta"):
        loaded = prepared("gpt2", GPT2LMHeadModel(GPT2Config()), small_tokenizer())
    # benchmarks/results/engine_cpu.jsonl: everything, T = 20, batch 64
    assert 64 * batch_size.bytes_per_prompt(loaded, 20, 1) == pytest.approx(1331e6, rel=0.2)


def test_the_prompts_named_are_those_that_get_no_centred_norm() -> None:
    named = random_prompts((6,) * MIN_PROMPTS + (9, 9, 5))
    reach = CalibrationReach("p", MIN_PROMPTS, "position")
    reach.add(named)
    said = reach.shortfall()
    assert said is not None
    assert said.startswith("p: 2 of 11 prompts will have no centred norm")
    assert "9 tokens: 2 prompts (enough up to 6 tokens)" in said
    enough = CalibrationReach("p", MIN_PROMPTS, "position")
    enough.add(named[:MIN_PROMPTS])
    assert enough.shortfall() is None
    by_template = CalibrationReach("p", MIN_PROMPTS, "template")
    by_template.add(named[:MIN_PROMPTS])
    assert "template 't0', 6 tokens: 4 prompts (too few of any length)" in str(by_template.shortfall())


def test_a_study_centred_by_template_is_the_engine_so_centred(tmp_path: Path) -> None:
    asked = {"tasks": ("greater_than",), "wrong_answers": ("inverse_logits",), "prompts_per_task": 80}
    study = small_study(tmp_path, centering="template", calibration_prompts=48, **asked)
    (planned,) = open_plans(study, "cpu")
    finished(study)
    calibration, _ = read_means(planned.store, planned.plan, "greater_than")
    rows = prompts(study.out).collect()
    assert calibration.centering == "template"
    assert set(calibration.tasks["greater_than"].groups) == set(rows["template"])
    rare = Counter(rows.filter(rows["status"] == "uncalibrated")["template"])
    assert 0 < rare.total() < len(rows)
    assert f"{rare.total()} of 80 prompts" in planned.shortfalls[0]
    norms = scan(study.out).filter(pl.col("component") == "m1.out").collect()
    assert norms["centered_grad_norm"].null_count() == rare.total()
    by_position = small_study(tmp_path, out=f"{tmp_path}/other", **asked)
    finished(by_position)
    others = scan(by_position.out).filter(pl.col("component") == "m1.out").collect()
    assert norms["grad_norm"].equals(others["grad_norm"])
    assert not norms["centered_grad_norm"].equals(others["centered_grad_norm"])


def test_prompts_are_centred_by_template_where_nearly_all_of_them_can_be(tmp_path: Path) -> None:
    asked = {"tasks": ("greater_than",), "wrong_answers": ("inverse_logits",)}
    (few,) = open_plans(small_study(tmp_path, prompts_per_task=40, out=f"{tmp_path}/few", **asked), "cpu")
    (many,) = open_plans(small_study(tmp_path, prompts_per_task=600, out=f"{tmp_path}/many", **asked), "cpu")
    assert (few.plan.study.centering, many.plan.study.centering) == ("position", "template")
    resumed, *_ = open_plans(small_study(tmp_path, prompts_per_task=600, out=f"{tmp_path}/many", **asked), "cpu")
    assert resumed.resumed


@pytest.mark.parametrize(("missed", "centering"), [(0, "template"), (5, "template"), (6, "position")])
def test_what_a_study_is_centred_by_hangs_on_the_share_of_prompts_that_it_would_miss(missed: int, centering: str):
    assert settled("auto", {"template": missed, "position": 0}, 100) == centering
    assert settled("template", {"template": 100, "position": 0}, 100) == "template"
