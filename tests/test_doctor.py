from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import obstore
import pytest
from tiny_models import saved_tiny_gpt2
from typer import Exit

from gbcd.commands import doctor as doctor_module
from gbcd.commands.doctor import doctor, looked, model_loads, output_is_writable


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "ray_works", lambda: "not started in this test")


def test_a_machine_that_is_ready_is_told_what_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved_tiny_gpt2(tmp_path / "model")
    doctor(model, str(tmp_path / "results"))
    said = capsys.readouterr().out.replace("\n", " ")
    assert said.count("ok ") == 5
    assert "2 layers, 6 components" in " ".join(said.split())
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
    assert "not ready: model, output" in said.err


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
    assert not looked("model", lambda: model_loads(str(tmp_path))).is_good
