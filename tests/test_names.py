from __future__ import annotations

import pytest

from gbcd.errors import BadInput
from gbcd.evaluation.baselines import baseline
from gbcd.tasks import task
from gbcd.wrong_answers import wrong_answer
from gbcd.wrong_answers.output_targets import for_outputs


def test_a_name_that_is_too_long_for_a_file_is_refused() -> None:
    with pytest.raises(BadInput, match="at most 100 bytes"):
        wrong_answer("ü" * 51)(lambda *given: None)  # pyright: ignore


@pytest.mark.parametrize("name", ["../../esc", "x/y", "a.b", "", ".hidden", "a b", "a\n", "C:x"])
def test_names_that_files_cannot_have_are_refused_when_they_are_registered(name: str) -> None:
    for register in (task(name, "logit_difference"), wrong_answer(name), baseline(name), for_outputs(name)):
        with pytest.raises(BadInput, match="a name is made of letters, digits"):
            register(lambda *given: None)  # pyright: ignore
