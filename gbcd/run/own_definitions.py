"""Tasks, wrong answers and scores that are not gbcd's own: from a file into this process, and on to workers.

A file of definitions is plain Python that registers what it defines by the decorators. It is imported when a command
starts, once, and its hash becomes part of the plan. Workers get the definitions that a study names, by value: code and
all, so that nothing needs to be installed where they run.
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
from gbcd.errors import BadInput, place
from gbcd.models.load import LoadedModel
from gbcd.names import n_registered
from gbcd.run.norms_work import EngineBuilder, ShardEngine
from gbcd.run.shards import Plan
from gbcd.wrong_answers import WrongAnswer, output_targets
from gbcd.wrong_answers.output_targets import OutputDefinition


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
        raise BadInput(f"definitions cannot be read: {error}") from error


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
    before = n_registered()
    try:
        exec(compile(file.text, file.path, "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[file.module]
        raise BadInput(f"definitions in {place(error, file.path)}: {type(error).__name__}: {error}") from error
    if n_registered() == before:
        del sys.modules[file.module]
        raise BadInput(
            f"definitions in {file.path} define nothing: a task is registered by @task, a wrong answer by "
            "@wrong_answer, a score by @baseline"
        )


class OwnDefinitions(NamedTuple):
    """Definitions of the wrong answer that are not gbcd's own.

    Attributes:
        wrong_answers: for tokens.
        outputs: for models that answer at every position, by name.
    """

    wrong_answers: tuple[WrongAnswer, ...]
    outputs: tuple[tuple[str, OutputDefinition], ...]

    def register(self) -> None:
        """Register them in this process, to which they were sent."""
        for definition in self.wrong_answers:
            wrong_answers.register(definition)
        for name, definition in self.outputs:
            output_targets.register(name, definition)


def own_definitions(names: Sequence[str]) -> OwnDefinitions:
    """Those of the wrong answers `names` that are not gbcd's own.

    Raises:
        BadInput: a name is not known.
    """
    of_outputs = [(name, found) for name in names if (found := output_targets.get(name)) is not None]
    return OwnDefinitions(
        tuple(one for one in map(wrong_answers.get, names) if is_own(one.define)),
        tuple((name, found) for name, found in of_outputs if found.define is not None and is_own(found.define)),
    )


def is_own(function: object) -> bool:
    """Whether a function is a researcher's, not gbcd's."""
    return function.__module__.split(".")[0] != "gbcd"


class WithDefinitions(NamedTuple):
    """Registers definitions where an engine is built, then builds it."""

    build: EngineBuilder
    definitions: OwnDefinitions

    def __call__(self, loaded: LoadedModel, plan: Plan, calibration: Calibration | None) -> ShardEngine:
        """Build the engine of a worker."""
        self.definitions.register()
        return self.build(loaded, plan, calibration)


def with_definitions(build: EngineBuilder, names: Sequence[str]) -> EngineBuilder:
    """`build`, which takes along those of the wrong answers `names` that are not gbcd's own, code and all.

    Raises:
        BadInput: a name is not known.
    """
    own = own_definitions(names)
    modules = {one.define.__module__ for _, one in own.outputs} | {one.define.__module__ for one in own.wrong_answers}
    if not modules:
        return build
    from ray import cloudpickle

    for module in modules & sys.modules.keys():
        cloudpickle.register_pickle_by_value(sys.modules[module])
    return WithDefinitions(build, own)
