"""Engines that fail on purpose, around the real one; each is an `EngineBuilder`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence

import pyarrow as pa

from gbcd.component import Component
from gbcd.engine.calibration import Calibration, Centering
from gbcd.engine.tables import FAILED, STATISTICS, ShardTables
from gbcd.errors import BadInput
from gbcd.models.load import LoadedModel
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.run.norms_work import EngineBuilder, NormsWork, ShardEngine, build_engine
from gbcd.run.shards import Plan
from gbcd.run.work import OnProgress

#: Columns that a failed prompt keeps.
KEPT = {"prompt_id", "task", "template", "prompt", "answer", "wrong_answer", "n_tokens"}

Act = Callable[[Sequence[EncodedPrompt]], None]


class FaultyEngine:
    """Calls `act` with the prompts of a batch before it computes."""

    def __init__(self, engine: ShardEngine, act: Act) -> None:
        self._engine, self._act = engine, act

    @property
    def components(self) -> list[Component]:
        return self._engine.components

    def calibrate(
        self, prompts: Sequence[EncodedPrompt], centering: Centering, batch_size: int, on_progress: OnProgress
    ) -> Calibration:
        return self._engine.calibrate(prompts, centering, batch_size, on_progress)

    def compute(self, prompts: Sequence[EncodedPrompt]) -> ShardTables:
        self._act(prompts)
        return self._engine.compute(prompts)


def faulty(act: Act) -> EngineBuilder:
    """A builder of engines that call `act` first."""

    def build(loaded: LoadedModel, plan: Plan, calibration: Calibration | None) -> ShardEngine:
        return FaultyEngine(build_engine(loaded, plan, calibration), act)

    return build


def failing_on(*prompt_ids: str) -> EngineBuilder:
    """Fails on some prompts as the engine does when it has found them: they have a reason and no values."""

    class Failing(FaultyEngine):
        def compute(self, prompts: Sequence[EncodedPrompt]) -> ShardTables:
            tables = super().compute(prompts)
            values = [name for name in tables.prompts.column_names if name not in KEPT]
            rows = [
                row | dict.fromkeys(values) | {"status": FAILED, "reason": f"{row['prompt_id']} is poison"}
                if row["prompt_id"] in prompt_ids
                else row
                for row in tables.prompts.to_pylist()
            ]
            norms = [
                row | (dict.fromkeys(STATISTICS) if row["prompt_id"] in prompt_ids else {})
                for row in tables.norms.to_pylist()
            ]
            return ShardTables(
                pa.Table.from_pylist(rows, schema=tables.prompts.schema),
                pa.Table.from_pylist(norms, schema=tables.norms.schema),
            )

    def build(loaded: LoadedModel, plan: Plan, calibration: Calibration | None) -> ShardEngine:
        return Failing(build_engine(loaded, plan, calibration), lambda prompts: None)

    return build


def raising_on(*prompt_ids: str) -> EngineBuilder:
    """Raises on some prompts, always."""

    def act(prompts: Sequence[EncodedPrompt]) -> None:
        for prompt in prompts:
            if prompt.prompt.id in prompt_ids:
                raise ArithmeticError(f"{prompt.prompt.id} is poison")

    return faulty(act)


def killed_by(prompt_id: str, marker: str | None = None, how: signal.Signals = signal.SIGKILL) -> EngineBuilder:
    """Ends its process, as the kernel would, on one prompt, or stops it with SIGSTOP; once only with a `marker` file,
    which then holds the process's number."""

    def act(prompts: Sequence[EncodedPrompt]) -> None:
        if any(prompt.prompt.id == prompt_id for prompt in prompts):
            _signal_oneself(how, marker)

    return faulty(act)


def slow(seconds: float) -> EngineBuilder:
    """Takes its time over every batch."""
    return faulty(lambda prompts: time.sleep(seconds))


def refusing(message: str) -> EngineBuilder:
    """Refuses every batch."""

    def act(prompts: Sequence[EncodedPrompt]) -> None:
        raise BadInput(message)

    return faulty(act)


def stopped_once(out: str, marker: str) -> NormsWork:
    """The work of a plan; the first worker that builds it stops, and `marker` then holds its number."""
    _signal_oneself(signal.SIGSTOP, marker)
    return NormsWork(out)


def _signal_oneself(how: signal.Signals, marker: str | None) -> None:
    if marker is not None:
        if os.path.exists(marker):
            return
        with open(marker, "w") as file:
            file.write(str(os.getpid()))
    os.kill(os.getpid(), how)
