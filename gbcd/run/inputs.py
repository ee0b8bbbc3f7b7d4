"""The prompts of a study with their tokens, stored beside its plan.

A study's prompts are drawn, checked, tokenised and written once, when it is planned: one Parquet file with one row
group per shard, in batches of like lengths. Workers read their row group and need no tokenizer. The alternative, every
worker drawing again, would cost each of them the whole draw (prompts are distinct, so the draw is sequential), would
need prompt files on every machine, and would give other prompts whenever a template is edited between a run and its
resumption. The plan itself stays small, and so does the driver's memory.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from operator import attrgetter
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from gbcd.errors import BadInput
from gbcd.prompting.outputs import OutputAnswer
from gbcd.prompting.prompt import Prompt
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.run.shards import Plan, Shard, StoredFile
from gbcd.run.store import Store

#: What remains to be done where the stored prompts cannot be read.
LOST = "nothing computes them again, so start again in another folder"

_TOKENS = pa.list_(pa.int32())
_VALUES = pa.list_(pa.float64())

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
        ("ids", _TOKENS),
        ("answer_ids", _TOKENS),
        ("wrong_ids", _TOKENS),
        ("twin_ids", _TOKENS),
        ("counterfactual_ids", _TOKENS),
        ("farthest_ids", _TOKENS),
        ("partner_ids", _TOKENS),
        ("partner_id", pa.string()),
        ("right_outputs", _VALUES),
        ("wrong_outputs", _VALUES),
        ("place", pa.int64()),
    ]
)
"""One row per prompt: the fields of `Prompt`, those of `EncodedPrompt`, and its place in the order of its task."""

_COMPRESSED: dict[str, Any] = {"compression": "zstd", "use_dictionary": ["task", "template"], "write_statistics": False}

_TEXT = SCHEMA.names[: SCHEMA.names.index("ids")]
_ENCODED = SCHEMA.names[SCHEMA.names.index("ids") : SCHEMA.names.index("right_outputs")]


class InputsWriter:
    """Writes prompts to a temporary file, group of rows by group of rows; `publish` takes it to the store.

    A context manager; the temporary file is gone when the context ends. Where there is no room for it, every method
    raises `BadInput`.
    """

    def __init__(self) -> None:
        with _temporary_space():
            self._folder = tempfile.TemporaryDirectory()
            self._local = Path(self._folder.name) / "inputs.parquet"
            self._writer = pq.ParquetWriter(self._local, SCHEMA, write_page_checksum=True, **_COMPRESSED)
        self.rows = 0

    def __enter__(self) -> InputsWriter:
        return self

    def __exit__(self, *raised: object) -> None:
        with suppress(OSError):  # what could not be written is not missed
            self._writer.close()
        self._folder.cleanup()

    def add(self, rows: pa.Table) -> None:
        """Append a group of rows."""
        with _temporary_space():
            self._writer.write_table(rows, row_group_size=rows.num_rows)
        self.rows += rows.num_rows

    def publish(self, store: Store) -> StoredFile:
        """Finish the file and upload it under a name of its own."""
        with _temporary_space():
            self._writer.close()
        path = f"inputs/{uuid4().hex}.parquet"
        with self._local.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        store.write(path, self._local)
        return StoredFile(path=path, bytes=self._local.stat().st_size, sha256=sha256, rows=self.rows)

    def written(self) -> Iterator[pa.Table]:
        """Finish the file and read it back, group of rows by group of rows."""
        with _temporary_space():
            self._writer.close()
        with pq.ParquetFile(self._local) as file:
            for number in range(file.num_row_groups):
                yield file.read_row_group(number)


class Inputs:
    """Reads stored prompts by shard."""

    def __init__(self, store: Store, plan: Plan) -> None:
        """Open the file; only its footer is read.

        Raises:
            BadInput: it is gone or damaged, here or when it is read.
        """
        self._plan, self._location = plan, f"{store.location}/{plan.inputs.path}"
        with self._stored():
            self._file = pq.ParquetFile(store.open(plan.inputs.path), page_checksum_verification=True)

    def read(self, shard: Shard) -> list[EncodedPrompt]:
        """The prompts of a shard, in order; `Plan.batches` says where their batches lie."""
        return [encoded for _, encoded in rows_of(self._rows(shard))]

    def ids(self, shard: Shard) -> list[str]:
        """The identifiers of a shard's prompts, in order."""
        return self._rows(shard, ["id"])["id"].to_pylist()

    def sample(self, task: str, n: int) -> list[EncodedPrompt]:
        """The first `n` prompts of a task in the order in which they were shuffled: a random draw."""
        found: list[tuple[int, EncodedPrompt]] = []
        for shard in (one for one in self._plan.shards if one.task == task):
            if sum(place < n for place, _ in found) == n:
                break
            found += (row for row in rows_of(self._rows(shard)) if row[0] < n)
        return [encoded for _, encoded in sorted(found, key=lambda row: row[0])]

    def _rows(self, shard: Shard, columns: list[str] | None = None) -> pa.Table:
        with self._stored():
            return self._file.read_row_group(shard.id, columns=columns)

    @contextmanager
    def _stored(self) -> Generator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            state = "gone" if isinstance(error, FileNotFoundError) else "damaged"
            raise BadInput(f"{self._location}: the study's prompts are {state}; {LOST}") from error


def table_of(prompts: Sequence[EncodedPrompt], places: Sequence[int]) -> pa.Table:
    """`prompts`, and the place of each in the order of its task, as rows."""
    fields = {name: attrgetter(f"prompt.{name}") for name in _TEXT} | {name: attrgetter(name) for name in _ENCODED}
    columns: dict[str, Sequence[Any]] = {name: [*map(read, prompts)] for name, read in fields.items()}
    columns["right_outputs"] = [one.outputs and one.outputs.right for one in prompts]
    columns["wrong_outputs"] = [one.outputs and one.outputs.wrong for one in prompts]
    columns["place"] = places
    return pa.table(columns, schema=SCHEMA)


def rows_of(table: pa.Table) -> Iterator[tuple[int, EncodedPrompt]]:
    """Place and prompt of each row."""
    for row in table.to_pylist():
        values: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in row.items()}
        right, wrong, place = values.pop("right_outputs"), values.pop("wrong_outputs"), values.pop("place")
        prompt = Prompt(**{name: values.pop(name) for name in _TEXT})
        yield place, EncodedPrompt(prompt, **values, outputs=None if right is None else OutputAnswer(right, wrong))


@contextmanager
def _temporary_space() -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise BadInput(
            f"prompts are written to a temporary file first, and that fails: {error.strerror or error}. "
            "Make room there, or name a folder with room in the variable TMPDIR"
        ) from error
