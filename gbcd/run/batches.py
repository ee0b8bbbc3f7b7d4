"""Batches of like lengths, cut from a study's order of prompts.

The shuffled prompts of a task are taken in windows of `WINDOW` batches. Within a window they are ordered by length, so
that a batch needs little padding, and cut into batches. A window is a random draw from the task, and what follows from
the order alone does not depend on shards or workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

T = TypeVar("T")
R = TypeVar("R")

#: Batches in a window.
WINDOW = 32


def by_length(prompts: Iterable[pa.Table], batch_size: int) -> Iterator[pa.Table]:
    """Rows of the `prompts` of one task (`inputs.SCHEMA`), a window a table, in order of length.

    Every `batch_size` rows are a batch. The longest sequence of a prompt decides: its own, or its twin's.
    """
    for window in in_tables_of(prompts, WINDOW * batch_size):
        longest = np.maximum(lengths(window["ids"]), lengths(window["twin_ids"]))
        yield window.take(pa.array(np.argsort(longest, kind="stable")))


def lengths(tokens: pa.ChunkedArray) -> Int[np.ndarray, " prompts"]:
    """Tokens of each row, -1 where there are none."""
    compute = cast(Any, pc)  # its functions are made at run time
    return compute.fill_null(compute.list_value_length(tokens), -1).to_numpy()


def in_tables_of(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """The same rows, `size` at a time; the last table may be smaller."""
    held: list[pa.Table] = []
    n = 0
    for table in tables:
        held.append(table)
        n += table.num_rows
        while n >= size:
            whole = pa.concat_tables(held)
            yield whole.slice(0, size).combine_chunks()
            held, n = [whole.slice(size)], n - size
    if n:
        yield pa.concat_tables(held).combine_chunks()


def groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """`size` items at a time; the last group may be smaller."""
    rest = iter(items)
    while group := list(islice(rest, size)):
        yield group


def ahead(items: Iterable[T], work: Callable[[T], R], n_threads: int = 1) -> Iterator[R]:
    """The results of `work`, in order; `n_threads` work ahead, and hold as many results that nobody has taken yet."""
    with ThreadPoolExecutor(n_threads) as pool:
        waiting = deque[Future[R]]()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * n_threads - 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
