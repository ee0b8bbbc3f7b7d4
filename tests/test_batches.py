from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from random_prompts import random_prompts

from gbcd.run.batches import WINDOW, by_length, in_tables_of
from gbcd.run.inputs import rows_of, table_of

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=300)


@given(LENGTHS, st.integers(1, 4), st.integers(1, 70))
def test_every_prompt_is_placed_once_and_windows_keep_the_order(
    lengths: list[int], batch_size: int, rows_read: int
) -> None:
    prompts = [replace(one, twin_ids=None) for one in random_prompts(lengths)]
    pieces = in_tables_of([table_of(prompts, range(len(prompts)))], rows_read)
    windows = [list(rows_of(table)) for table in by_length(pieces, batch_size)]
    size = WINDOW * batch_size
    assert [len(some) for some in windows[:-1]] == [size] * (len(windows) - 1)
    for number, some in enumerate(windows):
        assert sorted(place for place, _ in some) == list(range(len(prompts)))[number * size : (number + 1) * size]
        assert all(prompts[place] == prompt for place, prompt in some)
        assert [len(prompt.ids) for _, prompt in some] == sorted(len(prompt.ids) for _, prompt in some)


def test_the_longest_sequence_of_a_prompt_decides() -> None:
    short, long = (replace(one, twin_ids=None) for one in random_prompts([3, 5]))
    short = replace(short, twin_ids=(1, 2, 3, 4, 5, 6, 7))
    (table,) = by_length([table_of([short, long], [0, 1])], 2)
    assert [prompt for _, prompt in rows_of(table)] == [long, short]


@given(st.lists(st.integers(0, 9), max_size=9), st.integers(1, 7))
def test_tables_are_cut_anew_and_keep_their_rows(sizes: list[int], size: int) -> None:
    whole = pa.table({"row": range(sum(sizes))})
    pieces = [whole.slice(sum(sizes[:number]), n) for number, n in enumerate(sizes)]
    found = list(in_tables_of(pieces, size))
    assert [row for table in found for row in table["row"].to_pylist()] == whole["row"].to_pylist()
    assert all(table.num_rows == size for table in found[:-1])
