"""The prompts of a study, stored beside its plan.

A study's prompts are drawn, checked and written once, when it is planned: one Parquet file, shuffled within each task,
with one row group per shard. Workers read their row group and nothing else. The alternative, every worker drawing
again, would cost each of them the whole draw (prompts are distinct, so the draw is sequential), would need prompt files
on every machine, and would give other prompts whenever a template is edited between a run and its resumption.
The plan itself stays small, and so does the driver's memory.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, astuple
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from gbcd.prompting.prompt import Prompt
from gbcd.run.shards import Plan, Shard, StoredFile
from gbcd.run.store import Store

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("task", pa.string()),
        ("template", pa.string()),
        ("text", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("wrong_answers", pa.list_(pa.string())),
        ("twin", pa.string()),
        ("counterfactual", pa.string()),
        ("farthest", pa.string()),
    ]
)
"""One row per prompt; the columns are the fields of `Prompt`."""


class InputsWriter:
    """Writes the prompts of a study to a temporary file, shard by shard, then to the store.

    A context manager; `publish` inside it makes the file appear in the store.
    """

    def __init__(self) -> None:
        """Open a temporary file, which is gone when the context ends."""
        self._folder = tempfile.TemporaryDirectory()
        self._local = Path(self._folder.name) / "inputs.parquet"
        self._writer = pq.ParquetWriter(self._local, SCHEMA, compression="zstd", write_page_checksum=True)
        self._digest = hashlib.sha256()
        self.rows = 0

    def __enter__(self) -> InputsWriter:
        """Nothing more to open."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the temporary file."""
        self._writer.close()
        self._folder.cleanup()

    def add(self, prompts: list[Prompt]) -> None:
        """Append the prompts of one shard."""
        rows: list[dict[str, Any]] = [asdict(prompt) for prompt in prompts]
        self._writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), row_group_size=len(rows))
        _update(self._digest, prompts)
        self.rows += len(rows)

    @property
    def prompts_sha256(self) -> str:
        """Hash of all prompts so far, in order."""
        return self._digest.hexdigest()

    def publish(self, store: Store) -> StoredFile:
        """Finish the file and upload it under a name of its own."""
        self._writer.close()
        path = f"inputs/{uuid4().hex}.parquet"
        with self._local.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        store.write(path, self._local)
        return StoredFile(path=path, bytes=self._local.stat().st_size, sha256=sha256, rows=self.rows)


class Inputs:
    """Reads stored prompts by shard."""

    def __init__(self, store: Store, plan: Plan) -> None:
        """Open the file; only its footer is read."""
        self._plan = plan
        self._file = pq.ParquetFile(store.open(plan.inputs.path), page_checksum_verification=True)

    def read(self, shard: Shard) -> list[Prompt]:
        """The prompts of a shard, in order."""
        return [_prompt(row) for row in self._file.read_row_group(shard.id).to_pylist()]

    def ids(self, shard: Shard) -> list[str]:
        """The identifiers of a shard's prompts, in order."""
        return self._file.read_row_group(shard.id, columns=["id"]).column("id").to_pylist()

    def sample(self, task: str, n: int) -> list[Prompt]:
        """The first `n` prompts of a task: a random draw, because they are stored shuffled."""
        return [prompt for prompt, _ in zip(self._of_task(task), range(n), strict=False)]

    def _of_task(self, task: str) -> Iterator[Prompt]:
        for shard in self._plan.shards:
            if shard.task == task:
                yield from self.read(shard)


def fingerprint(prompts: Iterable[Prompt]) -> str:
    """SHA-256 of prompts in order, field by field."""
    digest = hashlib.sha256()
    _update(digest, prompts)
    return digest.hexdigest()


def _update(digest: Any, prompts: Iterable[Prompt]) -> None:
    for prompt in prompts:
        digest.update(json.dumps(astuple(prompt)).encode() + b"\n")


def _prompt(row: dict[str, Any]) -> Prompt:
    answers, wrong_answers = tuple(row.pop("answers")), tuple(row.pop("wrong_answers"))
    return Prompt(**row, answers=answers, wrong_answers=wrong_answers)
