"""Partners; which prompts the centring statistics cover, and what prompts are centred by."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from random_prompts import random_prompts

from gbcd.engine.calibration import MIN_PROMPTS
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.run import compared
from gbcd.run.compared import CentringCoverage, PartnerPool
from gbcd.run.inputs import table_of
from gbcd.run.settling import centering


def made(number: int, ids: tuple[int, ...], answer: int, template: str = "t") -> EncodedPrompt:
    (one,) = random_prompts([len(ids)])
    prompt = replace(one.prompt, id=f"p/{number}", template=template)
    return replace(one, prompt=prompt, ids=ids, answer_ids=(answer,), twin_ids=None)


def paired(prompts: list[EncodedPrompt], seed: int = 0) -> list[EncodedPrompt]:
    pool = PartnerPool(seed)
    pool.add(prompts)
    return [pool.with_partner(one) for one in prompts]


def test_a_partner_is_another_prompt_of_template_and_length_with_another_answer() -> None:
    prompts = [made(i, (i, i % 3, 7)[: 2 + i % 2], i % 4, template=f"t{i % 2}") for i in range(40)]
    by_id = {one.prompt.id: one for one in prompts}
    for one in paired(prompts):
        assert one.partner_id is not None
        partner = by_id[one.partner_id]
        assert partner.ids == one.partner_ids
        assert (partner.prompt.template, len(partner.ids)) == (one.prompt.template, len(one.ids))
        assert partner.ids != one.ids
        assert partner.answer_ids != one.answer_ids


def test_where_all_answers_are_one_the_text_differs_and_repeated_prompts_are_no_partners() -> None:
    same = [made(0, (1, 2), 5), made(1, (1, 2), 5), made(2, (3, 4), 5)]
    found = paired(same)
    assert [one.partner_id for one in found][:2] == ["p/2", "p/2"]
    assert found[2].partner_id in ("p/0", "p/1")


def test_a_prompt_alone_has_no_partner() -> None:
    for one in paired([made(0, (1, 2), 5), made(1, (1, 2, 3), 6), made(2, (1, 9), 7, template="u")]):
        assert (one.partner_ids, one.reference) == (None, "none")


def test_the_seed_decides_and_partners_are_spread() -> None:
    prompts = [made(i, (i, i + 1), i) for i in range(200)]
    chosen = [one.partner_id for one in paired(prompts)]
    assert chosen == [one.partner_id for one in paired(prompts)]
    assert chosen != [one.partner_id for one in paired(prompts, seed=1)]
    assert max(Counter(chosen).values()) < 10


def test_the_pool_is_bounded_and_serves_who_comes_later(monkeypatch) -> None:
    monkeypatch.setattr(compared, "POOL", 4)
    prompts = [made(i, (i, i + 1), i) for i in range(20)]
    assert {one.partner_id for one in paired(prompts)} <= {f"p/{i}" for i in range(4)}


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
