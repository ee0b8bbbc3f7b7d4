from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined
from typer import Exit

from gbcd.commands.init import first_study, init
from gbcd.engine.tables import STATISTICS
from gbcd.study import PROMPTS_PER_TASK, Compute, Study, read_study


def test_the_first_study_is_a_study(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    init(file)
    assert read_study(file).tasks == ("ioi",)
    assert f"gbcd run {file}" in file.read_text()


def test_every_choice_is_explained_with_its_default() -> None:
    text = first_study(Path("x.toml"))
    lines = [line.removeprefix("# ") for line in text.splitlines() if re.match(r"(# )?\w+ = |\[compute]$", line)]
    written = tomllib.loads("\n".join(lines))
    assert written.keys() == Study.model_fields.keys()
    assert written["compute"].keys() == Compute.model_fields.keys()
    assert Compute(**written["compute"]) == Compute()
    for name, field in Study.model_fields.items():
        assert field.default in (None, (), PydanticUndefined, written[name]) or name == "compute"
        assert field.description
    assert written["prompts_per_task"] == PROMPTS_PER_TASK
    assert set(written["statistics"]) == set(STATISTICS)


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("mine")
    with pytest.raises(Exit) as left:
        init(file)
    assert left.value.exit_code == 2
    assert file.read_text() == "mine"
