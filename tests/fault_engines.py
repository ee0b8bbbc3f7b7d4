"""Engines that fail on purpose, around the real one; each is an `EngineBuilder`."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence

from gbcd.component import Component
from gbcd.engine.calibration import Calibration, Centering
from gbcd.engine.tables import ShardTables
from gbcd.models.load import LoadedModel
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.run.shards import Plan
from gbcd.run.workers import EngineBuilder, ShardEngine, build_engine

Act = Callable[[Sequence[EncodedPrompt], int], None]


class FaultyEngine:
    """Calls `act` with the prompts and the batch size before it computes."""

    def __init__(self, engine: ShardEngine, batch_size: int, act: Act) -> None:
        self._engine, self._batch_size, self._act = engine, batch_size, act

    @property
    def components(self) -> list[Component]:
        return self._engine.components

    def calibrate(self, prompts: Sequence[EncodedPrompt], centering: Centering) -> Calibration:
        return self._engine.calibrate(prompts, centering)

    def compute(self, prompts: Sequence[EncodedPrompt]) -> ShardTables:
        self._act(prompts, self._batch_size)
        return self._engine.compute(prompts)


def faulty(act: Act) -> EngineBuilder:
    """A builder of engines that call `act` first."""

    def build(loaded: LoadedModel, plan: Plan, batch_size: int, calibration: Calibration | None) -> ShardEngine:
        return FaultyEngine(build_engine(loaded, plan, batch_size, calibration), batch_size, act)

    return build


def poisoned_by(*prompt_ids: str) -> EngineBuilder:
    """Raises on some prompts, always."""

    def act(prompts: Sequence[EncodedPrompt], batch_size: int) -> None:
        for prompt in prompts:
            if prompt.prompt.id in prompt_ids:
                raise ArithmeticError(f"{prompt.prompt.id} is poison")

    return faulty(act)


def hungry(largest_batch: int) -> EngineBuilder:
    """Runs out of memory on batches above `largest_batch`."""

    def act(prompts: Sequence[EncodedPrompt], batch_size: int) -> None:
        if batch_size > largest_batch:
            raise MemoryError(f"a batch of {batch_size} does not fit")

    return faulty(act)


def killed_by(prompt_id: str, marker: str | None = None, how: signal.Signals = signal.SIGKILL) -> EngineBuilder:
    """Ends its process, as the kernel would, on one prompt, or stops it with SIGSTOP; once only with a `marker` file,
    which then holds the process's number."""

    def act(prompts: Sequence[EncodedPrompt], batch_size: int) -> None:
        if any(prompt.prompt.id == prompt_id for prompt in prompts):
            _signal_oneself(how, marker)

    return faulty(act)


def stopped_in_calibration(marker: str) -> EngineBuilder:
    """Stops its process, once, when it is asked to calibrate; `marker` then holds the process's number."""

    class Stopped(FaultyEngine):
        def calibrate(self, prompts: Sequence[EncodedPrompt], centering: Centering) -> Calibration:
            _signal_oneself(signal.SIGSTOP, marker)
            return super().calibrate(prompts, centering)

    def build(loaded: LoadedModel, plan: Plan, batch_size: int, calibration: Calibration | None) -> ShardEngine:
        engine = build_engine(loaded, plan, batch_size, calibration)
        return Stopped(engine, batch_size, lambda prompts, size: None)

    return build


def _signal_oneself(how: signal.Signals, marker: str | None) -> None:
    if marker is not None:
        if os.path.exists(marker):
            return
        with open(marker, "w") as file:
            file.write(str(os.getpid()))
    os.kill(os.getpid(), how)
