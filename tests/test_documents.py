"""Documents say what is so: commands and files are real, the site builds, imports point one way."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from gbcd import versions
from gbcd.cli import app

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    "README.md",
    "AGENTS.md",
    "CONTRIBUTING.md",
    *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")
COMMAND = re.compile(r"(?:^ {4}|^|`)(gbcd [a-z][^`#\n\\]*)", re.MULTILINE)
BIN = Path(sys.executable).parent


def commands() -> list[str]:
    found = {match.strip() for name in DOCUMENTS for match in COMMAND.findall((ROOT / name).read_text())}
    return sorted(command for command in found if command.split()[1] in _names())


def _names() -> list[str]:
    return [command.name or command.callback.__name__ for command in app.registered_commands]  # pyright: ignore


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_links_to_is_there(document: str) -> None:
    text = (ROOT / document).read_text()
    missing = [link for link in LINK.findall(text) if not ((ROOT / document).parent / link.strip()).exists()]
    assert missing == []


def test_commands_of_documents_have_the_flags_that_they_are_shown_with() -> None:
    assert len(commands()) > 8
    for command in commands():
        words = shlex.split(command.replace("...", ""))
        known = CliRunner().invoke(app, [words[1], "--help"], env={"COLUMNS": "200"}).stdout
        unknown = [word for word in words[2:] if word.startswith("-") and word.split("=")[0] not in known]
        assert unknown == [], command


def test_imports_point_one_way() -> None:
    done = subprocess.run([BIN / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    build = [BIN / "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "load_circuit" in (tmp_path / "api" / "index.html").read_text()


def test_the_citation_names_this_version() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == versions.GBCD
    assert f"## {versions.GBCD}" in (ROOT / "CHANGELOG.md").read_text()
