"""The Python of README and docs runs as it stands, against results made by the README's own command."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(document: str, language: str) -> list[str]:
    return [code for found, code in BLOCK.findall((ROOT / document).read_text()) if found == language]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `results/ioi`, made by the README's command on fewer prompts."""
    where = tmp_path_factory.mktemp("readme")
    (command,) = (code for code in blocks("README.md", "sh") if code.startswith("gbcd run"))
    words = command.replace("\\\n", " ").split()
    words[words.index("--prompts") + 1] = "96"
    done = subprocess.run([sys.executable, "-m", *words, "--workers", "0"], cwd=where, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return where


PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("code", [code for page in PAGES for code in blocks(page, "python")])
def test_a_query_of_the_documents_runs(code: str, folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("print(" in code) == ("shape: (" in done.stdout)


@pytest.mark.parametrize("code", blocks("AGENTS.md", "python"))
def test_an_example_of_the_developers_guide_runs(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
