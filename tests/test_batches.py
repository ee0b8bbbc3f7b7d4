from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from random_prompts import random_prompts

from gbcd.run.batches import WINDOW, by_length

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=300)


@given(LENGTHS, st.integers(1, 4))
def test_every_prompt_is_placed_once_and_windows_keep_the_order(lengths: list[int], batch_size: int) -> None:
    prompts = [replace(one, twin_ids=None) for one in random_prompts(lengths)]
    placed = list(by_length(prompts, batch_size))
    assert sorted(place for place, _ in placed) == [*range(len(prompts))]
    assert all(prompts[place] is prompt for place, prompt in placed)
    window = WINDOW * batch_size
    for start in range(0, len(placed), window):
        some = placed[start : start + window]
        assert {place // window for place, _ in some} == {start // window}
        assert [len(prompt.ids) for _, prompt in some] == sorted(len(prompt.ids) for _, prompt in some)


def test_the_longest_sequence_of_a_prompt_decides() -> None:
    short, long = (replace(one, twin_ids=None) for one in random_prompts([3, 5]))
    short = replace(short, twin_ids=(1, 2, 3, 4, 5, 6, 7))
    assert [prompt for _, prompt in by_length([short, long], 2)] == [long, short]
