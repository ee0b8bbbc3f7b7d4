"""Tasks, wrong answers and scores that are not gbcd's own: from a file into this process, and on to workers.

A file of definitions is plain Python that registers what it defines by the decorators. It is imported when a command
starts, once, and its hash becomes part of the plan. Workers get the text of the files and import it in the same way, so
that nothing needs to be installed where they run.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from gbcd import wrong_answers
from gbcd.errors import BadInput, is_own, place
from gbcd.names import registered
from gbcd.run.shards import Plan


class DefinitionFile(NamedTuple):
    """A file of definitions, as it was read."""

    path: str
    text: bytes

    @property
    def sha256(self) -> str:
        """Of the text."""
        return hashlib.sha256(self.text).hexdigest()

    @property
    def module(self) -> str:
        """What its module is called, which no import statement can name."""
        return f"definitions {self.sha256}"


def read_definitions(paths: Sequence[str]) -> tuple[DefinitionFile, ...]:
    """Read files of definitions.

    Raises:
        BadInput: a file cannot be read.
    """
    try:
        return tuple(DefinitionFile(path, Path(path).expanduser().read_bytes()) for path in paths)
    except OSError as error:
        raise BadInput(f"definitions {error.filename!r} cannot be read: {error.strerror}") from error


def import_definitions(files: Sequence[DefinitionFile]) -> None:
    """Register what `files` define; what was imported before is not imported again.

    Raises:
        BadInput: the code of a file fails, with the line, or it defines nothing.
    """
    for file in files:
        if file.module not in sys.modules:
            _import(file)


def changed_since(files: Sequence[DefinitionFile], plan: Plan) -> list[str]:
    """Those of `files` that `plan` knows by name, with another text."""
    known = plan.sources.definitions
    names = {Path(path).name for path in known.values()}
    return [file.path for file in files if Path(file.path).name in names and file.sha256 not in known]


def _import(file: DefinitionFile) -> None:
    module = ModuleType(file.module)
    module.__file__ = file.path
    sys.modules[file.module] = module
    before = len(registered)
    try:
        exec(compile(file.text, file.path, "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[file.module]
        raise BadInput(f"definitions in {place(error, file.path)}: {type(error).__name__}: {error}") from error
    if len(registered) == before:
        del sys.modules[file.module]
        raise BadInput(
            f"definitions in {file.path} define nothing: a task is registered by @task, a wrong answer by "
            "@wrong_answer, a score by @baseline"
        )


def refuse_unsent(names: Sequence[str], files: Sequence[DefinitionFile]) -> None:
    """Refuse wrong answers that workers cannot know, which get the text of `files` and nothing else of this process.

    Raises:
        BadInput: one of `names` is registered by code that is neither gbcd's nor in a file.
    """
    known = {file.module for file in files}
    for definition in map(wrong_answers.get, names):
        if is_own(definition.define) and definition.define.__module__ not in known:
            raise BadInput(
                f"wrong answer {definition.name!r} is known in this process alone: write it to a file and name that in "
                "`definitions` (--definitions FILE.py), or compute with workers = 0"
            )
