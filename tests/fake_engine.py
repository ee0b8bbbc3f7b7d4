"""An engine without gradients: its numbers are made from the prompt's text, so every run must give the same."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from gbcd.calibration import Calibration, TaskMeans
from gbcd.components import Component
from gbcd.models import LoadedModel
from gbcd.shards import Plan
from gbcd.tables import COHERENCE, PROMPTS, STATISTICS, ShardTables, norms_schema
from gbcd.tokens import EncodedPrompt


class FakeEngine:
    """Computes nothing. `POISON` names prompts that raise, `NAN` prompts whose gradient is not finite."""

    def __init__(self, loaded: LoadedModel, plan: Plan, batch_size: int, calibration: Calibration | None) -> None:
        self._loaded, self._wrong_answers = loaded, plan.study.wrong_answers
        self.batch_size = batch_size

    @property
    def components(self) -> list[Component]:
        return self._loaded.components

    def calibrate(self, prompts: Sequence[EncodedPrompt]) -> Calibration:
        lengths = torch.tensor([[len(one.ids) for one in prompts]])
        means = TaskMeans(("",), {"x": lengths.float().unsqueeze(2)}, lengths.T, torch.zeros(len(prompts)).long())
        return Calibration("position", {prompts[0].prompt.task: means})

    def compute(self, prompts: Sequence[EncodedPrompt]) -> ShardTables:
        rows = [(one, wrong) for one in prompts for wrong in self._wrong_answers]
        return ShardTables(self._prompts(rows), self._norms(rows), self._coherence(prompts))

    def flagged(self, one: EncodedPrompt) -> bool:
        """True for a prompt whose gradient is to be called not finite."""
        return False

    def _prompts(self, rows: list[tuple[EncodedPrompt, str]]) -> pa.Table:
        return pa.Table.from_pylist(
            [
                {
                    "prompt_id": one.prompt.id,
                    "task": one.prompt.task,
                    "template": one.prompt.template,
                    "prompt": one.prompt.text,
                    "answer": one.prompt.answers[0],
                    "wrong_answer": wrong,
                    "wrong_token": None,
                    "n_tokens": len(one.ids),
                    "answer_logit": 1.0,
                    "wrong_logit": 0.5,
                    "correct": True,
                    "loss": float("nan") if self.flagged(one) else 2.0,
                    "status": "non_finite" if self.flagged(one) else "ok",
                }
                for one, wrong in rows
            ],
            schema=PROMPTS,
        )

    def _norms(self, rows: list[tuple[EncodedPrompt, str]]) -> pa.Table:
        n = len(self.components)
        columns: dict[str, list[object]] = {name: [] for name in norms_schema(n).names}
        for one, wrong in rows:
            keys = (one.prompt.id, one.prompt.task, one.prompt.template, wrong)
            for name, value in zip(columns, keys, strict=False):
                columns[name].append(value)
            seed = zlib.crc32(f"{one.prompt.text}{wrong}".encode())
            for number, name in enumerate(STATISTICS):
                values = np.random.default_rng([seed, number]).random(n, dtype=np.float32)
                columns[name].append(None if self.flagged(one) else values.tolist())
        return pa.table(columns, schema=norms_schema(n))

    def _coherence(self, encoded: Sequence[EncodedPrompt]) -> pa.Table:
        return pa.Table.from_pylist(
            [
                {
                    "task": encoded[0].prompt.task,
                    "wrong_answer": wrong,
                    "component": part.name,
                    "batch": 0,
                    "n": len(encoded),
                    "sum_sq": 3.0,
                    "sq_sum": 2.0,
                }
                for wrong in self._wrong_answers
                for part in self.components
            ],
            schema=COHERENCE,
        )
