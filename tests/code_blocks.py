"""The code blocks of the documents, and the commands in the middle of their sentences and of docstrings."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent

#: Pages all of whose blocks are run. The developers' guide has its tree besides, which is no file of a run.
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
GUIDE = "AGENTS.md"

PROGRAM = r"(?:gbcd [a-z]|python (?:benchmarks|jobs)/|make [a-z]|ray [a-z]|kubectl |pip install )"


class Block(NamedTuple):
    """A block, where it stands, and the first word of its fence; empty for a fence without one, and without a fence."""

    page: str
    line: int
    kind: str
    code: str

    def __str__(self) -> str:
        """As its test is named."""
        return f"{self.page}:{self.line}"


def _blocks(page: str) -> list[Block]:
    tokens = MarkdownIt().parse((ROOT / page).read_text(encoding="utf-8"))
    return [
        Block(page, token.map[0] + 1, (token.info.split() or [""])[0], token.content)
        for token in tokens
        if token.type in ("fence", "code_block") and token.map
    ]


BLOCKS = [block for page in PAGES for block in _blocks(page)]


def of_kind(kind: str) -> list[Block]:
    """All blocks of a kind; Python of the developers' guide too."""
    guide = _blocks(GUIDE) if kind == "python" else []
    return [block for block in [*BLOCKS, *guide] if block.kind == kind]


def commands(code: str) -> list[list[str]]:
    """The commands of a shell block as words, without comments; a line that ends in a backslash goes on in the next.

    Of a loop `until COMMAND`, `do sleep 2; done`, on two lines, the command.
    """
    lines = [line.removeprefix("until ") for line in code.replace("\\\n", " ").splitlines() if line[:3] != "do "]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def mentioned() -> list[list[str]]:
    """Commands between backticks in running text, and those that studies, jobs, clusters and benchmarks show."""
    found: list[str] = []
    for page in [*PAGES, GUIDE]:
        text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        found += re.findall(rf"`({PROGRAM}[^`]*)`", text)
    for file in [ROOT / "cluster.yaml", *ROOT.glob("jobs/**/*.[yt]*ml")]:
        found += re.findall(rf"(?:`|entrypoint: )({PROGRAM}[^`\n]*)", file.read_text(encoding="utf-8"))
    for script in [*ROOT.glob("jobs/*.py"), *ROOT.glob("benchmarks/*.py")]:
        docstring = (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "").replace("\\\n", " ")
        found += re.findall(rf"^ *({PROGRAM}.*)$", docstring, re.MULTILINE)
    return [commands(command.replace("\n", " ").replace("...", ""))[0] for command in sorted(set(found))]
