from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import huggingface_hub.constants
import obstore
import pytest
import torch
from tiny_models import random_model, saved_tiny_gpt2, small_tokenizer
from typer import Exit

from gbcd.commands import doctor as doctor_module
from gbcd.commands import model_checks
from gbcd.commands.doctor import Finding, doctor, looked, looked_at_model, output_is_writable
from gbcd.commands.model_checks import checks
from gbcd.models.load import LoadedModel, load, prepared


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "ray_works", lambda: "not started in this test")


def test_a_machine_that_is_ready_is_told_what_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved_tiny_gpt2(tmp_path / "model")
    doctor(model, str(tmp_path / "results"))
    said = capsys.readouterr().out.replace("\n", " ")
    labels = [
        "installation",
        "devices",
        "ray",
        "output",
        "model",
        "tokens",
        "embeddings",
        "decoder",
        "batches",
        "speed",
    ]
    assert [label for label in labels if f"{label:<13}ok " in said] == labels
    said = " ".join(said.split())
    assert "2 layers, 6 components" in said
    assert re.search(r"added to a prompt: \S+", said)
    assert "tied: embedding and unembedding are one matrix" in said
    assert re.search(r"norms are those of float64 autograd to \de-0[5-9] \(the first 2 of 2 blocks\)", said)
    assert re.search(r"in float32 a norm changes by \de-0[5-9] of itself", said)
    assert re.search(r"[\d.]+ prompts of 20 tokens a second .* 1,000 prompts take .* memory [\d.]+ GiB", said)
    assert re.search(r"grad_norm alone 0\.\d\d, without means \d\.\d\d, .* with edges \d\.\d\d", said)
    assert "gbcd run --task ioi" in said
    assert list((tmp_path / "results").iterdir()) == []


def test_what_is_missing_is_named_and_the_rest_still_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # or it waits for a network
    (tmp_path / "file").write_text("")
    with pytest.raises(Exit) as left:
        doctor("no/such-model", str(tmp_path / "file"))
    assert left.value.exit_code == 2
    said = capsys.readouterr()
    assert "model        missing" in said.out
    assert "output       missing" in said.out
    assert "not ready: output, model" in said.err


def test_a_bug_is_not_taken_for_a_finding() -> None:
    with pytest.raises(ZeroDivisionError):
        looked("arithmetic", lambda: str(1 // 0))


def test_a_store_that_accepts_two_exclusive_creations_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an object store does that ignores `If-None-Match: *`."""
    put = obstore.put
    monkeypatch.setattr(
        "gbcd.run.store.obstore.put", lambda store, path, data, **how: put(store, path, data, mode="overwrite")
    )
    finding = looked("output", lambda: output_is_writable(str(tmp_path)))
    assert not finding.is_good
    assert "this store overwrites what is to be created only once" in finding.detail
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_model_is_no_model(tmp_path: Path) -> None:
    assert not next(looked_at_model(str(tmp_path), "float32")).is_good


def test_a_padded_vocabulary_is_counted_and_a_compiled_program_is_not_timed() -> None:
    model = random_model("gpt2", 1800, dtype=torch.float32)
    found = {one.what: one.detail for one in findings_of(prepared("padded", model, small_tokenizer()))}
    n_tokens = len(small_tokenizer())
    assert f"{n_tokens:,}; " in found["tokens"]
    assert f"{1800 - n_tokens} more rows of the embedding stand for no token" in found["tokens"]
    assert "speed" not in checks(load("tracr_reverse", "cpu"))


def test_a_model_that_the_decoder_runs_otherwise_is_a_finding() -> None:
    loaded = prepared("other", random_model("llama", 1800, dtype=torch.float32), small_tokenizer())
    spec = replace(loaded.spec, mlps=tuple(replace(one, activation="relu") for one in loaded.spec.mlps))
    wrong = LoadedModel("other", loaded.model, loaded.tokenizer, spec)
    finding = looked("decoder", lambda: checks(wrong)["decoder"](wrong))
    assert not finding.is_good
    assert "does not run 'other' as the library does" in finding.detail


def findings_of(loaded: LoadedModel) -> list[Finding]:
    return [looked(what, partial(check, loaded)) for what, check in checks(loaded).items()]


def test_of_a_slow_model_one_batch_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_checks, "QUICK", 0.0)
    said = model_checks.speed(load("reference", "cpu"))
    assert said.endswith(" GiB")
