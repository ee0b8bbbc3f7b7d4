"""Which prompts the centring statistics cover, and what prompts are centred by."""

from __future__ import annotations

import pytest
from random_prompts import random_prompts

from gbcd.engine.calibration import MIN_PROMPTS
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.run.centring_coverage import CentringCoverage
from gbcd.run.inputs import table_of
from gbcd.run.settling import centering


def coverage(prompts: list[EncodedPrompt], sample_size: int, *cuts: int) -> CentringCoverage:
    """Of `prompts`, taken in in pieces."""
    found = CentringCoverage("p", sample_size)
    for start, stop in zip((0, *cuts), (*cuts, len(prompts)), strict=True):
        found.add(table_of(prompts[start:stop], range(start, stop)))
    return found


@pytest.mark.parametrize("cuts", [(), (3,), (1, 9)])
def test_the_prompts_named_are_those_that_get_no_centred_norm(cuts: tuple[int, ...]) -> None:
    named = random_prompts((6,) * MIN_PROMPTS + (9, 9, 5))
    found = coverage(named, MIN_PROMPTS, *cuts)
    assert found.missed("position").rows() == [("", 9, 2, 6)]
    assert found.sample_sizes("position") == {"": MIN_PROMPTS}
    said = found.shortfall("position")
    assert said is not None
    assert said.startswith("p: 2 of 11 prompts will have no centred norm")
    assert f"among the {MIN_PROMPTS} calibration prompts:\n9 tokens: 2 prompts (enough up to 6 tokens)" in said
    enough = coverage(named[:MIN_PROMPTS], MIN_PROMPTS)
    assert enough.shortfall("position") is None
    assert enough.sample_sizes("template") == {"t0": 4, "t1": 4}
    assert "template 't0', 6 tokens: 4 prompts (too few of any length)" in str(enough.shortfall("template"))


@pytest.mark.parametrize(("missed", "found"), [(0, "template"), (5, "template"), (6, "position")])
def test_what_a_study_is_centred_by_hangs_on_the_share_of_prompts_that_it_would_miss(missed: int, found: str) -> None:
    assert centering(missed, 100) == found
