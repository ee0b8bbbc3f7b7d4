"""Documents say what is so: links lead somewhere, the site builds, imports point one way."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from code_blocks import GUIDE, PAGES, ROOT, of_kind

import gbcd
from gbcd import versions

LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")
BIN = Path(sys.executable).parent


@pytest.mark.parametrize("document", [*PAGES, GUIDE])
def test_what_a_document_links_to_is_there(document: str) -> None:
    text = (ROOT / document).read_text()
    missing = [link for link in LINK.findall(text) if not ((ROOT / document).parent / link.strip()).exists()]
    assert missing == []


@pytest.mark.parametrize("name", gbcd.__all__)
def test_a_public_name_is_documented_and_shown_in_use(name: str) -> None:
    assert f"\n::: gbcd.{name}\n" in (ROOT / "docs" / "api.md").read_text()
    used = re.compile(rf"\bgbcd\.{name}\(")
    assert name == "Component" or any(
        used.search(block.code) for block in of_kind("python") if block.page == "docs/api.md"
    )


def test_the_annotated_tree_names_every_module() -> None:
    guide = (ROOT / "AGENTS.md").read_text()
    named = set(re.findall(r"\w+", guide[guide.index("\ndatasets/") : guide.index("\nImports point")]))
    modules = [path for path in (ROOT / "gbcd").rglob("*.py") if not path.stem.startswith("__")]
    in_words = {"commands", "tasks"}  # a file a command, a file a task
    assert [str(path) for path in modules if path.stem not in named and path.parent.name not in in_words] == []


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
