"""Tasks, wrong answers and scores that are not gbcd's own: from a file into this process, and on to workers.

A file of definitions is plain Python that registers what it defines by the decorators. It is imported here, once, and
its hash becomes part of the plan. Workers have imported gbcd alone: files are sent to them as they were read, and
definitions of the wrong answer that some script made known are sent by themselves.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from gbcd import wrong_answers
from gbcd.engine.calibration import Calibration
from gbcd.engine.engine import loss_gradient, packed_for, scene_of
from gbcd.errors import BadInput, own_code, place
from gbcd.models.load import LoadedModel
from gbcd.prompting.outputs import space_of
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.run.norms_work import EngineBuilder, ShardEngine
from gbcd.run.shards import Plan
from gbcd.wrong_answers import WrongAnswer


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
        return tuple(DefinitionFile(path, Path(path).read_bytes()) for path in paths)
    except OSError as error:
        raise BadInput(f"definitions cannot be read: {error}") from error


def import_definitions(files: Sequence[DefinitionFile]) -> None:
    """Make known what `files` define; what was imported before is not imported again.

    Raises:
        BadInput: the code of a file fails; names the line.
    """
    for file in files:
        if file.module not in sys.modules:
            _import(file)


def changed_since(files: Sequence[DefinitionFile], plan: Plan) -> list[str]:
    """Those of `files` that `plan` knows by name, with another text."""
    known = plan.identity.hashes
    return [file.path for file in files if known.get(f"definitions:{Path(file.path).name}", file.sha256) != file.sha256]


def _import(file: DefinitionFile) -> None:
    module = ModuleType(file.module)
    module.__file__ = file.path
    sys.modules[file.module] = module
    try:
        exec(compile(file.text, file.path, "exec", dont_inherit=True), module.__dict__)
    except Exception as error:
        del sys.modules[file.module]
        raise BadInput(f"definitions in {place(error, file.path)}: {type(error).__name__}: {error}") from error


def try_definitions(names: Sequence[str], prompts: Sequence[EncodedPrompt], loaded: LoadedModel) -> None:
    """Let those of the definitions `names` that are not gbcd's own choose once, before workers start.

    Raises:
        BadInput: the code of one fails; names it, the file and the line.
    """
    own = [definition for definition in map(wrong_answers.get, names) if not _is_gbcds(definition)]
    if not own or space_of(loaded.tokenizer) is not None:
        return
    run = loaded.decoder.run(packed_for(loaded, [(prompt.ids,) for prompt in prompts]))
    scene = scene_of(prompts, run.logits[:, 0], loaded)
    for definition in own:
        with own_code(f"wrong answer {definition.name!r}", definition.define):
            target = definition.define(scene)
            if not definition.reads_twin:
                loss_gradient(target, run.logits)


def _is_gbcds(definition: WrongAnswer) -> bool:
    return definition.define.__module__.split(".")[0] == "gbcd"


class WithDefinitions(NamedTuple):
    """Makes definitions known where an engine is built, then builds it.

    Attributes:
        build: builds the engine.
        files: to be imported there.
        definitions: those that come from no file.
    """

    build: EngineBuilder
    files: tuple[DefinitionFile, ...]
    definitions: tuple[WrongAnswer, ...]

    def know(self) -> None:
        """Make the definitions known to this process."""
        import_definitions(self.files)
        for definition in self.definitions:
            wrong_answers.know(definition)

    def __call__(self, loaded: LoadedModel, plan: Plan, calibration: Calibration | None) -> ShardEngine:
        """Build the engine of a worker."""
        self.know()
        return self.build(loaded, plan, calibration)


def with_definitions(build: EngineBuilder, names: Sequence[str], files: Sequence[DefinitionFile] = ()) -> EngineBuilder:
    """`build`, which takes along `files` and those of the definitions `names` that gbcd itself does not bring.

    Raises:
        BadInput: a name is not known.
    """
    modules = {file.module for file in files}
    found = [wrong_answers.get(name) for name in names]
    own = tuple(one for one in found if not _is_gbcds(one) and one.define.__module__ not in modules)
    return WithDefinitions(build, tuple(files), own) if files or own else build
