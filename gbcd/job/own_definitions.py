"""Definitions of the wrong answer that are not gbcd's own, on their way to workers, which have imported gbcd alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gbcd import wrong_answers
from gbcd.architectures.models import LoadedModel
from gbcd.gradients.calibration import Calibration
from gbcd.job.shards import Plan
from gbcd.job.workers import EngineBuilder, ShardEngine
from gbcd.wrong_answers import WrongAnswer


class WithDefinitions(NamedTuple):
    """Makes `definitions` known where an engine is built, then builds it."""

    build: EngineBuilder
    definitions: tuple[WrongAnswer, ...]

    def know(self) -> None:
        """Make the definitions known to this process."""
        for definition in self.definitions:
            wrong_answers.know(definition)

    def __call__(
        self, loaded: LoadedModel, plan: Plan, batch_size: int, calibration: Calibration | None
    ) -> ShardEngine:
        """Build the engine of a worker."""
        self.know()
        return self.build(loaded, plan, batch_size, calibration)


def with_definitions(build: EngineBuilder, names: Sequence[str]) -> EngineBuilder:
    """`build`, which takes along those of the definitions `names` that gbcd itself does not bring.

    Raises:
        BadInput: a name is not known.
    """
    found = [wrong_answers.get(name) for name in names]
    own = tuple(one for one in found if one.define.__module__.split(".")[0] != "gbcd")
    return WithDefinitions(build, own) if own else build
