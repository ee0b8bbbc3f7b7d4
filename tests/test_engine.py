"""What the engine promises beyond the norms themselves: invariances, statuses, memory, and refusals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from gbcd.models.gpt2_pass import Gpt2Pass
from gbcd.models.hooked_pass import HookedPass
from random_prompts import VOCAB, random_prompts
from tiny_models import random_gpt2

from gbcd.engine.calibration import MIN_PROMPTS, Calibration
from gbcd.engine.engine import Engine
from gbcd.engine.tables import ShardTables
from gbcd.errors import BadInput
from gbcd.models.load import LoadedModel, prepared
from gbcd.prompting.tokens import EncodedPrompt

NAMES = ["logit_difference", "foil", "inverse_logits"]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return prepared("tiny", *random_gpt2(2, 2, 8, VOCAB, 0))


def lists(table: pa.Table, column: str) -> np.ndarray:
    return np.array(table.column(column).to_pylist(), dtype=float)


def by_prompt(tables: ShardTables, column: str) -> dict[tuple[str, str], np.ndarray]:
    keys = zip(tables.norms["prompt_id"].to_pylist(), tables.norms["wrong_answer"].to_pylist(), strict=True)
    return dict(zip(keys, lists(tables.norms, column), strict=True))


def assert_same(a: ShardTables, b: ShardTables, tolerance: float = 2e-5) -> None:
    for column in ("grad_norm", "taylor"):
        found, expected = by_prompt(a, column), by_prompt(b, column)
        assert found.keys() == expected.keys()
        for key, values in found.items():
            np.testing.assert_allclose(values, expected[key], rtol=tolerance, atol=tolerance * np.abs(values).max())


@pytest.mark.parametrize("lengths", [(12, 3, 7, 7, 2), (5,)])
def test_logits_are_those_of_the_library(loaded: LoadedModel, lengths: tuple[int, ...]) -> None:
    prompts = random_prompts(lengths)
    for model_pass in (Gpt2Pass(loaded.model), HookedPass(loaded.model, loaded.sites)):
        forward = model_pass.forward([(p.ids, p.twin_ids or p.ids) for p in prompts])
        for row, prompt in enumerate(prompts):
            for column, ids in enumerate((prompt.ids, prompt.twin_ids or prompt.ids)):
                expected = loaded.model(torch.tensor([ids])).logits[0, -1]
                torch.testing.assert_close(forward.logits[row, column], expected, rtol=1e-4, atol=1e-5)


def test_norms_do_not_depend_on_the_batch(loaded: LoadedModel) -> None:
    prompts = random_prompts((12, 3, 7, 7, 2, 9, 4))
    alone = Engine(loaded, NAMES, batch_size=1).compute(prompts)
    together = Engine(loaded, NAMES, batch_size=7).compute(prompts)
    assert_same(alone, together)


def test_norms_do_not_depend_on_what_else_the_study_asks(loaded: LoadedModel) -> None:
    prompts = random_prompts((6, 9))
    alone = Engine(loaded, ["foil"], batch_size=4).compute(prompts)
    among = by_prompt(Engine(loaded, NAMES, batch_size=4).compute(prompts), "grad_norm")
    for key, values in by_prompt(alone, "grad_norm").items():
        np.testing.assert_allclose(values, among[key], rtol=2e-5)


def test_prompts_without_twin_stand_beside_those_with(loaded: LoadedModel) -> None:
    first, second = random_prompts((6, 9))
    mixed = [first, replace(second, twin_ids=None)]
    found = by_prompt(Engine(loaded, ["logit_difference"], 4).compute(mixed), "grad_norm")
    alone = by_prompt(Engine(loaded, ["logit_difference"], 4).compute(mixed[1:]), "grad_norm")
    key = (second.prompt.id, "logit_difference")
    np.testing.assert_allclose(found[key], alone[key], rtol=1e-5)


def test_a_prompt_with_a_nan_is_kept_with_its_status_and_spoils_nothing(loaded: LoadedModel) -> None:
    poisoned_token = VOCAB - 1
    model, tokenizer = random_gpt2(2, 2, 8, VOCAB, 0)
    model.transformer.wte.weight.data[poisoned_token] = torch.nan
    model.lm_head.weight = torch.nn.Parameter(loaded.model.lm_head.weight.detach().clone())
    spoilt = prepared("tiny", model, tokenizer)
    prompts = random_prompts((6, 9, 4))
    prompts = [replace(p, ids=tuple(min(t, VOCAB - 2) for t in p.ids), twin_ids=None) for p in prompts]
    bad = replace(prompts[1], ids=(poisoned_token, *prompts[1].ids[1:]))
    tables = Engine(spoilt, ["foil"], 4).compute([prompts[0], bad, prompts[2]])
    statuses = dict(zip(tables.prompts["prompt_id"].to_pylist(), tables.prompts["status"].to_pylist(), strict=True))
    assert statuses == {prompts[0].prompt.id: "ok", bad.prompt.id: "non_finite", prompts[2].prompt.id: "ok"}
    missing = [row["prompt_id"] for row in tables.norms.to_pylist() if row["grad_norm"] is None]
    assert missing == [bad.prompt.id]


def test_prompts_beyond_the_calibration_have_no_centred_norm_and_say_so(loaded: LoadedModel) -> None:
    sample = random_prompts((6,) * MIN_PROMPTS)
    calibration = Engine(loaded, [], 4).calibrate(sample)
    tables = Engine(loaded, ["foil"], 4, calibration).compute(random_prompts((6, 9)))
    assert tables.prompts["status"].to_pylist() == ["ok", "uncalibrated"]
    assert [values is None for values in tables.norms["centered_grad_norm"].to_pylist()] == [False, True]
    assert all(values is not None for values in tables.norms["grad_norm"].to_pylist())


def test_both_passes_calibrate_alike_and_bytes_keep_it(loaded: LoadedModel) -> None:
    prompts = random_prompts((6, 9, 4, 9))
    own, hooked = Engine(loaded, [], 3), Engine(loaded, [], 3)
    hooked._pass = HookedPass(loaded.model, loaded.sites)
    first = own.calibrate(prompts, "template").tasks["p"]
    second = Calibration.from_bytes(hooked.calibrate(prompts, "template").to_bytes()).tasks["p"]
    assert first.groups == second.groups
    assert first.means.keys() == second.means.keys()
    for name, mean in first.means.items():
        torch.testing.assert_close(mean, second.means[name], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first.token_frequencies(VOCAB), second.token_frequencies(VOCAB))


class _Starved(Gpt2Pass):
    """Has memory for `room` units at once."""

    room = 2

    def forward(self, units: Sequence[Any], every_token: bool = False) -> Any:
        if len(units) > self.room:
            raise torch.OutOfMemoryError("can't allocate memory")
        return super().forward(units, every_token)


def test_out_of_memory_halves_the_batch_and_changes_nothing(loaded: LoadedModel) -> None:
    prompts = random_prompts((6, 9, 4, 9, 5))
    engine = Engine(loaded, NAMES, batch_size=5)
    expected = engine.compute(prompts)
    engine._pass = _Starved(loaded.model)
    assert_same(engine.compute(prompts), expected)


def test_out_of_memory_at_one_prompt_names_it(loaded: LoadedModel) -> None:
    prompts: list[EncodedPrompt] = random_prompts((6,))
    engine = Engine(loaded, NAMES, batch_size=5)
    engine._pass = _Starved(loaded.model)
    engine._pass.room = 0
    with pytest.raises(BadInput, match=r"p/0 \(6 tokens\) does not fit"):
        engine.compute(prompts)


def test_a_definition_that_needs_a_foil_refuses_prompts_without(loaded: LoadedModel) -> None:
    prompts = [replace(prompt, wrong_ids=()) for prompt in random_prompts((6,))]
    with pytest.raises(BadInput, match="p/0 has none"):
        Engine(loaded, ["foil"], 4).compute(prompts)


def test_a_linear_map_that_no_site_claims_is_refused_by_name() -> None:
    model, tokenizer = random_gpt2(1, 1, 8, VOCAB, 0)
    model.transformer.h[0].mlp.extra = torch.nn.Linear(2, 2)
    with pytest.raises(BadInput, match=r"transformer\.h\.0\.mlp\.extra"):
        prepared("odd", model, tokenizer)
