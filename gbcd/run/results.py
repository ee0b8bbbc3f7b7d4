"""Reading results: lazily as polars tables, or shard by shard for the reduction.

Everything starts from the commit records, so a file without one does not exist here, and a run that is still going
can be read. Norms lie wide on disk (`tables.py`); `scan` unfolds them, and polars reads only the columns and rows that
a query asks for.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from shlex import quote
from typing import TypeVar

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gbcd.component import Component
from gbcd.engine.tables import COMPONENTS, FAILED, PROMPTS, STATISTICS, ShardTables, concatenated
from gbcd.errors import BadInput
from gbcd.run.batches import ahead
from gbcd.run.commits import Commit, damaged, read_commits, read_table
from gbcd.run.shards import read_plan
from gbcd.run.store import Store

T = TypeVar("T")

COMPONENTS_FILE = "components.parquet"
SUMMARY_FILE = "summary.parquet"
EDGES_FILE = "edges.parquet"
NEURONS_FILE = "neurons.parquet"

#: In the metadata of the file of components: whether attention and MLP of a block both read the block's input.
_PARALLEL = b"parallel_attn_mlp"

#: Bytes of files whose tables are reduced together: many small ones cost more than their rows.
READ_BYTES = 8 << 20

_KEYS = ("prompt_id", "task", "template", "wrong_answer")
_TIDY = (*_KEYS, "component", "node", "layer", "head", "part", *STATISTICS)


def scan(out: str) -> pl.LazyFrame:
    """Gradient norms, one row per prompt, wrong answer and part.

    Columns: `prompt_id, task, template, wrong_answer, component, node, layer, head, part, grad_norm,
    centered_grad_norm, taylor`; `head` is null for what is not a head. Prompts whose gradient was not finite, or
    whose computation failed, have no rows here; `prompts` lists them with their status. Where a prompt has no centred
    norm, it is null.

    Raises:
        BadInput: nothing is committed in `out`.
    """
    return unfold(_committed(out, "norms"), read_stored(Store(out), COMPONENTS_FILE))


def unfold(norms: pl.LazyFrame, parts: pl.DataFrame) -> pl.LazyFrame:
    """From wide norms (`tables.norms_schema`) to the tidy table of `scan`; `parts` is the table of components."""
    parts = parts.with_row_index("_part")
    unfolded = [
        pl.when(pl.col(name).is_null())
        .then(pl.lit([None] * len(parts)))
        .otherwise(pl.col(name).arr.to_list())
        .alias(name)
        for name in STATISTICS
    ]
    return (
        norms.filter(pl.col("grad_norm").is_not_null())
        .with_columns(*unfolded, _part=pl.int_ranges(0, len(parts), dtype=pl.UInt32))
        .explode("_part", *STATISTICS)
        .join(parts.lazy(), on="_part", how="left", maintain_order="left")
        .select(_TIDY)
    )


def prompts(out: str) -> pl.LazyFrame:
    """Prompts as they were run, one row per prompt and wrong answer.

    Columns: `prompt_id, task, template, prompt, answer, wrong_answer, wrong_token, n_tokens, reference, answer_logit,
    wrong_logit, correct, above_wrong, loss, status, reason`; `status` is `ok`, `non_finite`, `uncalibrated` (no
    centred norm: the calibration does not reach this prompt) or `failed` (`reason` says why: what it gives is null).

    Raises:
        BadInput: nothing is committed in `out`.
    """
    return _committed(out, "prompts").select(PROMPTS.names)


def components(out: str) -> pl.LazyFrame:
    """Parts of the model in canonical order: `component, node, layer, head, part, n_params`.

    Raises:
        BadInput: `out` holds no results.
    """
    return read_stored(Store(out), COMPONENTS_FILE).lazy()


def summary(out: str) -> pl.LazyFrame:
    """Statistics over prompts, one row per task, wrong answer, level (`part` or `node`) and component, with its rank.

    Raises:
        BadInput: `out` has not been reduced.
    """
    return read_stored(Store(out), SUMMARY_FILE).lazy()


def failed_prompts(store: Store, commits: Sequence[Commit]) -> dict[str, str]:
    """Prompts that have no values because their computation failed, with the reason.

    Raises:
        BadInput: a file is missing or damaged.
    """
    failed: dict[str, str] = {}
    for commit in commits:
        if FAILED in commit.statuses:
            rows = read_table(store, commit.files["prompts"]).filter(pc.field("status") == FAILED)
            failed |= zip(rows["prompt_id"].to_pylist(), rows["reason"].to_pylist(), strict=True)
    return failed


def map_shards(store: Store, work: Callable[[ShardTables], T]) -> Iterator[T]:
    """Read the committed shards in threads and give the result of `work` on some at a time, in order of shard.

    Small shards are joined to about `READ_BYTES`. Twice as many such tables as processors are in memory at most.

    Raises:
        BadInput: a file is missing or damaged.
    """

    def of_some(commits: list[Commit]) -> T:
        shards = [{name: read_table(store, file) for name, file in one.files.items()} for one in commits]
        return work(concatenated([ShardTables(**shard) for shard in shards]))

    n_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ahead(_joined(read_commits(store)), of_some, n_threads)


def _joined(commits: Iterable[Commit]) -> Iterator[list[Commit]]:
    held, size = list[Commit](), 0
    for commit in commits:
        held.append(commit)
        size += sum(file.bytes for file in commit.files.values())
        if size >= READ_BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held


def read_components(store: Store) -> list[Component]:
    """Parts of the model in canonical order.

    Raises:
        BadInput: their file is missing or damaged.
    """
    return [Component(row.pop("component"), **row) for row in read_stored(store, COMPONENTS_FILE).to_dicts()]


def runs_in_parallel(store: Store) -> bool:
    """Whether attention and MLP of a block both read the block's input, as the model's architecture says.

    Raises:
        FileNotFoundError: nothing is planned yet.
    """
    metadata = pq.read_schema(pa.BufferReader(store.read(COMPONENTS_FILE))).metadata
    return metadata is not None and metadata.get(_PARALLEL) == b"true"


def component_table(parts: Sequence[Component]) -> pa.Table:
    """The table of components, in the order given."""
    named = {name: "name" if name == "component" else name for name in COMPONENTS.names}
    return pa.table({name: [getattr(part, of) for part in parts] for name, of in named.items()}, schema=COMPONENTS)


def encoded_components(parts: Sequence[Component], parallel: bool) -> bytes:
    """The file of components; `parallel` (see `runs_in_parallel`) goes into its metadata, which tables do not show."""
    return encoded(component_table(parts).replace_schema_metadata({_PARALLEL: str(parallel).lower().encode()}))


def encoded(table: pa.Table) -> bytes:
    """A small table as Parquet."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _committed(out: str, kind: str) -> pl.LazyFrame:
    """The tables of one kind of all committed shards."""
    store = Store(out)
    files = [commit.files[kind] for commit in read_commits(store)]
    if not files:
        read_plan(store)  # refuses what is no results folder
        raise BadInput(f"nothing is committed in {out!r} yet: `gbcd status` says how far it is")
    sizes = {entry.path: entry.size for entry in store.list(kind)}
    for file in files:
        if sizes.get(file.path) != file.bytes:
            raise damaged(store, f"{file.path} is {'damaged' if file.path in sizes else 'gone'}")
    return pl.scan_parquet([store.url(file.path) for file in files], glob=False)


def read_stored(store: Store, path: str) -> pl.DataFrame:
    """A table that lies beside the shards: of components, of the reduction or of an evaluation.

    Raises:
        BadInput: it is missing or damaged; says what writes it again.
        StorageError: it cannot be read now.
    """
    reduced = path in (SUMMARY_FILE, EDGES_FILE, NEURONS_FILE) or path.startswith("analysis/")
    command = "verify --repair" if path == COMPONENTS_FILE else "reduce" if reduced else "evaluate"
    again = f"`gbcd {command} {quote(store.root)}`"
    try:
        return pl.read_parquet(io.BytesIO(store.read(path)))
    except FileNotFoundError:
        raise BadInput(f"{store.location!r} holds no {path} (yet): run the study, or {again}") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise BadInput(f"{store.location}/{path} is damaged or of another version; {again} writes it again") from error
