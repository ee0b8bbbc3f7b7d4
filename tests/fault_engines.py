"""Work whose engine fails on purpose, around the real one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence

import pyarrow as pa

from gbcd.engine.calibration import Calibration
from gbcd.engine.engine import Engine
from gbcd.engine.tables import FAILED, STATISTICS, ShardTables
from gbcd.errors import BadInput
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.run.norms_work import NormsWork

#: Columns that a failed prompt keeps.
KEPT = {"prompt_id", "task", "template", "prompt", "answer", "wrong_answer", "n_tokens"}

Act = Callable[[Sequence[EncodedPrompt]], None]
Change = Callable[[ShardTables], ShardTables]


def faulty(act: Act = lambda batch: None, change: Change = lambda found: found) -> type[NormsWork]:
    """Work that calls `act` with the prompts of a batch before it computes, and changes what it found."""

    class Faulty(NormsWork):
        def engine(self, calibration: Calibration | None) -> Engine:
            engine = super().engine(calibration)
            compute = engine.compute

            def compute_faultily(batch: Sequence[EncodedPrompt]) -> ShardTables:
                act(batch)
                return change(compute(batch))

            engine.compute = compute_faultily
            return engine

    return Faulty


def failing_on(*prompt_ids: str) -> type[NormsWork]:
    """Fails on some prompts as the engine does when it has found them: they have a reason and no values."""

    def change(tables: ShardTables) -> ShardTables:
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

    return faulty(change=change)


def raising_on(*prompt_ids: str) -> type[NormsWork]:
    """Raises on some prompts, always."""

    def act(prompts: Sequence[EncodedPrompt]) -> None:
        for prompt in prompts:
            if prompt.prompt.id in prompt_ids:
                raise ArithmeticError(f"{prompt.prompt.id} is poison")

    return faulty(act)


def killed_by(prompt_id: str, marker: str | None = None, how: signal.Signals = signal.SIGKILL) -> type[NormsWork]:
    """Ends its process, as the kernel would, on one prompt, or stops it with SIGSTOP; once only with a `marker` file,
    which then holds the process's number."""

    def act(prompts: Sequence[EncodedPrompt]) -> None:
        if any(prompt.prompt.id == prompt_id for prompt in prompts):
            _signal_oneself(how, marker)

    return faulty(act)


def slow(seconds: float) -> type[NormsWork]:
    """Takes its time over every batch."""
    return faulty(lambda prompts: time.sleep(seconds))


def refusing(message: str) -> type[NormsWork]:
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
