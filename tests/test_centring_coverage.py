"""Which prompts the centring statistics cover, and what prompts are centred by."""

from __future__ import annotations

import pytest
from random_prompts import random_prompts

from gbcd.engine.calibration import MIN_PROMPTS
from gbcd.run.centring_coverage import CentringCoverage, settled


def test_the_prompts_named_are_those_that_get_no_centred_norm() -> None:
    named = random_prompts((6,) * MIN_PROMPTS + (9, 9, 5))
    reach = CentringCoverage("p", MIN_PROMPTS, "position")
    reach.add(named)
    said = reach.shortfall()
    assert said is not None
    assert said.startswith("p: 2 of 11 prompts will have no centred norm")
    assert "9 tokens: 2 prompts (enough up to 6 tokens)" in said
    enough = CentringCoverage("p", MIN_PROMPTS, "position")
    enough.add(named[:MIN_PROMPTS])
    assert enough.shortfall() is None
    by_template = CentringCoverage("p", MIN_PROMPTS, "template")
    by_template.add(named[:MIN_PROMPTS])
    assert "template 't0', 6 tokens: 4 prompts (too few of any length)" in str(by_template.shortfall())


@pytest.mark.parametrize(("missed", "centering"), [(0, "template"), (5, "template"), (6, "position")])
def test_what_a_study_is_centred_by_hangs_on_the_share_of_prompts_that_it_would_miss(missed: int, centering: str):
    assert settled("auto", {"template": missed, "position": 0}, 100) == centering
    assert settled("template", {"template": 100, "position": 0}, 100) == "template"
