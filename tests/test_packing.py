"""Examples as trees: shared prefixes, positions, and who sees whom."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gbcd.models.packing import pack

CPU = torch.device("cpu")


def test_a_pair_shares_everything_before_the_first_difference() -> None:
    packed = pack([((1, 2, 3, 4), (1, 2, 9, 4))], CPU)
    assert packed.ids.tolist() == [[1, 2, 3, 4, 9, 4]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 2, 3]]
    assert packed.answers.tolist() == [[3, 5]]
    sees = packed.visible[0]
    assert sees[3].tolist() == [True, True, True, True, False, False]
    assert sees[5].tolist() == [True, True, False, False, True, True]


def test_equal_sequences_keep_their_last_token_apart() -> None:
    packed = pack([((1, 2, 3), (1, 2, 3))], CPU)
    assert packed.ids.tolist() == [[1, 2, 3, 3]]
    assert packed.answers.tolist() == [[2, 3]]


@pytest.mark.parametrize("examples", [[((1,),), ((1,), (2,))], []])
def test_refuses_a_batch_of_unlike_examples(examples) -> None:
    with pytest.raises(ValueError, match="same number"):
        pack(examples, CPU)


def test_without_causality_every_token_sees_every_token_and_no_padding() -> None:
    packed = pack([((1, 2, 3),), ((4,),)], CPU, causal=False, every_token=True)
    assert packed.visible[0].all()
    assert packed.visible[1].tolist() == [[True, False, False]] * 3
    assert packed.answers.tolist() == [[0, 1, 2]] * 2


sequences = st.lists(st.integers(0, 3), min_size=1, max_size=7).map(tuple)


@given(st.lists(st.tuples(sequences, sequences), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_what_an_answer_sees_is_its_own_sequence(examples: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
    packed = pack(examples, CPU)
    for row, example in enumerate(examples):
        for branch, sequence in enumerate(example):
            answer = int(packed.answers[row, branch])
            seen = packed.visible[row, answer]
            assert tuple(packed.ids[row, seen].tolist()) == sequence
            assert packed.positions[row, seen].tolist() == list(range(len(sequence)))
    assert bool(packed.visible.diagonal(dim1=1, dim2=2).all())


@given(st.lists(st.tuples(sequences, sequences), min_size=1, max_size=3), st.booleans(), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_repeated_examples_are_those_of_a_longer_list(examples, alone: bool, times: int) -> None:
    chosen = [example[:1] if alone else example for example in examples]
    found = pack(chosen, CPU).repeated(times)
    wanted = pack([example for example in chosen for _ in range(times)], CPU)
    for name in ("ids", "positions", "answers"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    assert torch.equal(found.visible.expand_as(wanted.visible), wanted.visible)
    assert found.positions.stride(0) == wanted.positions.stride(0) or not alone
