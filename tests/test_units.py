"""Units as trees: shared prefixes, positions, and who sees whom."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gbcd.models.units import pack

CPU = torch.device("cpu")


def test_a_pair_shares_everything_before_the_first_difference() -> None:
    packed = pack([((1, 2, 3, 4), (1, 2, 9, 4))], CPU)
    assert packed.ids.tolist() == [[1, 2, 3, 4, 9, 4]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 2, 3]]
    assert packed.answers.tolist() == [[3, 5]]
    assert packed.first_length == 4
    sees = packed.visible[0]
    assert sees[3].tolist() == [True, True, True, True, False, False]
    assert sees[5].tolist() == [True, True, False, False, True, True]


def test_equal_sequences_keep_their_last_token_apart() -> None:
    packed = pack([((1, 2, 3), (1, 2, 3))], CPU)
    assert packed.ids.tolist() == [[1, 2, 3, 3]]
    assert packed.answers.tolist() == [[2, 3]]


def test_refuses_a_batch_of_unlike_units() -> None:
    with pytest.raises(ValueError, match="same number"):
        pack([((1,),), ((1,), (2,))], CPU)


sequences = st.lists(st.integers(0, 3), min_size=1, max_size=7).map(tuple)


@given(st.lists(st.tuples(sequences, sequences), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_what_an_answer_sees_is_its_own_sequence(units: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
    packed = pack(units, CPU)
    for row, unit in enumerate(units):
        for branch, sequence in enumerate(unit):
            answer = int(packed.answers[row, branch])
            seen = packed.visible[row, answer]
            assert tuple(packed.ids[row, seen].tolist()) == sequence
            assert packed.positions[row, seen].tolist() == list(range(len(sequence)))
    assert bool(packed.visible.diagonal(dim1=1, dim2=2).all())
