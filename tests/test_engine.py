"""What the engine promises beyond its values: orders, statuses, halving, and what definitions may do."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from oracle_values import engine_values, exact_calibration, mixed_prompts
from random_prompts import VOCAB, random_prompts
from tiny_models import random_gpt2

from gbcd import wrong_answers
from gbcd.engine import passes, tables
from gbcd.engine.calibration import MIN_PROMPTS
from gbcd.engine.engine import Engine
from gbcd.engine.oracle import Oracle
from gbcd.engine.tables import STATISTICS, ShardTables
from gbcd.errors import BadInput
from gbcd.models.load import LoadedModel, prepared
from gbcd.models.rules import RulesName
from gbcd.models.tails import tail_run
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.wrong_answers import LossContext
from gbcd.wrong_answers.losses import Target, TowardsTokens

NAMES = ["logit_difference", "foil", "inverse_logits"]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return prepared("tiny", *random_gpt2(2, 2, 8, VOCAB, 0))


@pytest.fixture
def define(forgotten: None) -> Callable[[str, Callable[[LossContext], Target]], object]:
    """Registers definitions of wrong answers for one test."""
    return lambda name, function: wrong_answers.wrong_answer(name)(function)


def lists(table: pa.Table, column: str) -> np.ndarray:
    return np.array(table.column(column).to_pylist(), dtype=float)


def by_prompt(found: ShardTables, column: str) -> dict[tuple[str, str], np.ndarray]:
    keys = zip(found.norms["prompt_id"].to_pylist(), found.norms["wrong_answer"].to_pylist(), strict=True)
    return dict(zip(keys, lists(found.norms, column), strict=True))


def assert_same(a: ShardTables, b: ShardTables, tolerance: float = 2e-5) -> None:
    for column in ("grad_norm", "taylor", "contrast_norm", "attribution"):
        found, expected = by_prompt(a, column), by_prompt(b, column)
        assert found.keys() == expected.keys()
        for key, values in found.items():
            np.testing.assert_allclose(values, expected[key], rtol=tolerance, atol=tolerance * np.abs(values).max())


def column(table: pa.Table, name: str) -> dict[str, object]:
    """A column of one wrong answer's rows, by prompt."""
    return dict(zip(table["prompt_id"].to_pylist(), table[name].to_pylist(), strict=True))


def test_tables_hold_what_was_computed_by_wrong_answer_and_in_the_batchs_order(loaded: LoadedModel) -> None:
    first, second, third, fourth = mixed_prompts((6, 9, 4, 6))
    batch = [first, replace(second, twin_ids=None), third, replace(fourth, twin_ids=None)]
    found = Engine(loaded, NAMES).compute(batch)
    order = [(name, prompt.prompt.id) for name in NAMES for prompt in batch]
    for table in (found.prompts, found.norms):
        assert list(zip(table["wrong_answer"].to_pylist(), table["prompt_id"].to_pylist(), strict=True)) == order
    assert found.prompts.schema.equals(tables.PROMPTS)
    assert found.norms.schema.equals(tables.norms_schema(len(loaded.components)))
    for number, name in enumerate(NAMES):
        expected = engine_values(Engine(loaded, [name]), batch)
        rows = slice(number * len(batch), (number + 1) * len(batch))
        np.testing.assert_allclose(lists(found.prompts, "loss")[rows], expected.losses.numpy(), rtol=1e-6)
        for statistic in ("grad_norm", "contrast_norm", "taylor", "attribution"):
            values = expected.statistics[statistic].numpy()
            largest = np.abs(values).max()
            np.testing.assert_allclose(lists(found.norms, statistic)[rows], values, rtol=1e-4, atol=1e-5 * largest)


def test_the_table_of_prompts_says_what_the_model_predicted(loaded: LoadedModel) -> None:
    prompts = mixed_prompts((6, 9, 4))
    batch = [prompts[0], replace(prompts[1], partner_ids=None, counterfactual_ids=prompts[1].twin_ids),
             replace(prompts[2], partner_ids=None)]  # fmt: skip
    for row, prompt in zip(Engine(loaded, ["foil"]).compute(batch).prompts.to_pylist(), batch, strict=True):
        logits = loaded.model(torch.tensor([prompt.ids])).logits[0, -1]
        answer, wrong = logits[list(prompt.answer_ids)].logsumexp(0), logits[prompt.wrong_ids[0]]
        assert row["answer_logit"] == pytest.approx(float(answer), rel=1e-4)
        assert row["wrong_logit"] == pytest.approx(float(wrong), rel=1e-4)
        assert row["loss"] == pytest.approx(float(logits.logsumexp(0) - wrong), rel=1e-4)
        assert row["above_wrong"] == bool(answer > wrong)
        assert row["correct"] == (int(logits.argmax()) in prompt.answer_ids)
        assert row["n_tokens"] == len(prompt.ids)
        assert (row["status"], row["reason"]) == ("ok", None)
    references = Engine(loaded, ["foil"]).compute(batch).prompts["reference"].to_pylist()
    assert references == ["partner", "counterfactual", "none"]


def test_a_prompt_without_a_reference_has_no_comparison_and_its_neighbours_have(loaded: LoadedModel) -> None:
    prompts = mixed_prompts((6, 6))
    found = Engine(loaded, ["foil"]).compute([prompts[0], replace(prompts[1], partner_ids=None)]).norms
    for statistic in ("contrast_norm", "attribution"):
        assert [values is None for values in found[statistic].to_pylist()] == [False, True]
    assert found["grad_norm"].null_count == found["taylor"].null_count == 0
    alone = Engine(loaded, ["foil"]).compute([replace(one, partner_ids=None) for one in prompts]).norms
    assert alone["attribution"].null_count == 2


def test_a_prompt_is_compared_with_its_counterfactual_before_its_partner(loaded: LoadedModel) -> None:
    (prompt,) = mixed_prompts((6,))
    other = tuple((token + 1) % VOCAB for token in prompt.ids)
    engine = Engine(loaded, ["foil"])
    both, alone, longer = (
        lists(engine.compute([one]).norms, "attribution")
        for one in (
            replace(prompt, counterfactual_ids=other),
            replace(prompt, counterfactual_ids=other, partner_ids=None),
            replace(prompt, counterfactual_ids=(*other, 3)),
        )
    )
    np.testing.assert_array_equal(both, alone)
    np.testing.assert_array_equal(longer, lists(engine.compute([prompt]).norms, "attribution"))
    assert np.abs(both - longer).max() > 1e-3


def test_norms_do_not_depend_on_what_else_the_study_asks(loaded: LoadedModel) -> None:
    prompts = mixed_prompts((6, 9))
    alone = Engine(loaded, ["foil"]).compute(prompts)
    among = by_prompt(Engine(loaded, NAMES).compute(prompts), "grad_norm")
    for key, values in by_prompt(alone, "grad_norm").items():
        np.testing.assert_allclose(values, among[key], rtol=2e-5)


@pytest.mark.parametrize("rules", ["plain", "relp", "gim"])
@pytest.mark.parametrize("edges", [False, True])
def test_nothing_of_a_batch_stays_in_memory(rules: RulesName, edges: bool) -> None:
    """An autograd node that keeps its own output keeps the pass; Python's collector frees one layer of it at a time."""
    engine = Engine(prepared("deep", *random_gpt2(8, 2, 4, VOCAB, 0)), ["margin"], rules=rules, edges=edges)

    def tensors_left() -> int:
        engine.compute(mixed_prompts((6, 9)))
        gc.collect()
        return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())

    tensors_left()
    assert tensors_left() == tensors_left()


def test_prompts_without_twin_stand_beside_those_with(loaded: LoadedModel) -> None:
    first, second = mixed_prompts((6, 9))
    second = replace(second, twin_ids=None)
    engine = Engine(loaded, ["logit_difference"])
    found, alone = (by_prompt(engine.compute(batch), "grad_norm") for batch in ([first, second], [second]))
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
    found = Engine(spoilt, ["foil"]).compute([prompts[0], bad, prompts[2]])
    assert found.prompts["status"].to_pylist() == ["ok", "non_finite", "ok"]
    assert [values is None for values in found.norms["grad_norm"].to_pylist()] == [False, True, False]
    clean = Engine(spoilt, ["foil"]).compute([prompts[0], prompts[2]])
    np.testing.assert_allclose(lists(found.norms.take([0, 2]), "grad_norm"), lists(clean.norms, "grad_norm"), rtol=1e-5)


def test_prompts_beyond_the_calibration_have_no_centred_norm_and_say_so(loaded: LoadedModel) -> None:
    sample = random_prompts((6,) * MIN_PROMPTS)
    calibration = Engine(loaded, []).calibrate(sample)
    found = Engine(loaded, ["foil"], calibration).compute(random_prompts((6, 9)))
    assert found.prompts["status"].to_pylist() == ["ok", "uncalibrated"]
    for statistic in ("centered_grad_norm", "mean_attribution"):
        assert [values is None for values in found.norms[statistic].to_pylist()] == [False, True]
    assert all(values is not None for values in found.norms["grad_norm"].to_pylist())


@pytest.mark.parametrize("centering", ["position", "template"])
def test_calibrated_means_are_the_oracles(loaded: LoadedModel, centering) -> None:
    prompts = random_prompts((6, 9, 4, 9, 6))
    done: list[int] = []
    found = Engine(loaded, []).calibrate(prompts, centering, batch_size=2, on_progress=done.append)
    expected = exact_calibration(Oracle(loaded), prompts, centering)
    assert done == [2, 4, 5]
    assert found.centering == centering
    one, two = found.tasks["p"], expected.tasks["p"]
    assert (one.groups, one.members, one.reach()) == (two.groups, two.members, two.reach())
    assert torch.equal(one.tokens, two.tokens)
    assert torch.equal(one.token_groups, two.token_groups)
    assert one.means.keys() == two.means.keys()
    for name, mean in two.means.items():
        torch.testing.assert_close(one.means[name].double(), mean.double(), rtol=1e-4, atol=1e-5, msg=name)


def test_a_prompt_that_does_not_run_is_in_no_mean(loaded: LoadedModel) -> None:
    prompts = random_prompts((6, 9, 4, 9, 6))
    bad = replace(prompts[2], ids=(VOCAB + 1, *prompts[2].ids))
    found = Engine(loaded, []).calibrate([*prompts[:2], bad, *prompts[3:]]).tasks["p"]
    expected = Engine(loaded, []).calibrate([*prompts[:2], *prompts[3:]]).tasks["p"]
    assert found.members == expected.members
    assert torch.equal(found.tokens, expected.tokens)
    for name, mean in expected.means.items():
        torch.testing.assert_close(found.means[name], mean, rtol=1e-5, atol=1e-6)


def raises_for(bad: EncodedPrompt, error: Exception) -> Callable[[LossContext], Target]:
    def definition(context: LossContext) -> Target:
        """Towards the wrong answer; raises where one prompt is among the others."""
        if bad.answer_ids in context.answers:
            raise error
        return TowardsTokens(context.wrong)

    return definition


@pytest.mark.parametrize("bad", [0, 2, 4])
def test_a_prompt_that_raises_is_alone_with_its_reason_and_the_others_have_their_values(loaded, define, bad) -> None:
    prompts = mixed_prompts((6, 9, 4, 9, 5))
    define("picky", raises_for(prompts[bad], ZeroDivisionError("nothing to share")))
    found = Engine(loaded, ["picky", "foil"]).compute(prompts)
    statuses = ["failed" if row == bad else "ok" for row in range(5)]
    reasons = ["ZeroDivisionError: nothing to share" if row == bad else None for row in range(5)]
    assert found.prompts["status"].to_pylist() == statuses * 2
    assert found.prompts["reason"].to_pylist() == reasons * 2
    assert found.prompts["prompt_id"].to_pylist() == [one.prompt.id for one in prompts] * 2
    failed = found.prompts.to_pylist()[bad]
    assert failed["loss"] is failed["answer_logit"] is failed["correct"] is None
    assert all(found.norms.to_pylist()[bad][statistic] is None for statistic in STATISTICS)
    good = [one for row, one in enumerate(prompts) if row != bad]
    wanted, kept = Engine(loaded, ["foil"]).compute(good), [5 + row for row in range(5) if row != bad]
    np.testing.assert_allclose(lists(found.norms.take(kept), "grad_norm"), lists(wanted.norms, "grad_norm"), rtol=1e-4)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_out_of_memory_halves_the_batch_and_changes_nothing(loaded, define, error) -> None:
    prompts, sizes = mixed_prompts((6, 9, 4, 9, 5)), []

    def starved(context: LossContext) -> Target:
        """The wrong answer, of two prompts at once."""
        sizes.append(len(context.logits))
        if sizes[-1] > 2:
            raise error
        return TowardsTokens(context.wrong)

    define("starved", starved)
    found, expected = (Engine(loaded, [name]).compute(prompts) for name in ("starved", "foil"))
    assert sizes == [5, 2, 3, 1, 2]
    assert found.prompts["status"].to_pylist() == ["ok"] * 5
    renamed = expected.norms.set_column(3, "wrong_answer", pa.array(["starved"] * 5))
    assert_same(found, expected._replace(norms=renamed))


def test_out_of_memory_at_one_prompt_says_so(loaded: LoadedModel, define) -> None:
    prompts = mixed_prompts((6, 9))
    define("vast", raises_for(prompts[1], torch.OutOfMemoryError("tried to allocate 1 TiB")))
    found = column(Engine(loaded, ["vast"]).compute(prompts).prompts, "reason")
    assert found["p/0"] is None
    assert found["p/1"] == "does not fit into memory even alone: tried to allocate 1 TiB"


def test_an_interruption_is_not_a_failed_prompt(loaded: LoadedModel, define) -> None:
    def interrupted(context: LossContext) -> Target:
        """Never comes back."""
        raise KeyboardInterrupt

    define("interrupted", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Engine(loaded, ["interrupted"]).compute(mixed_prompts((6,)))


def test_a_definition_that_changes_the_logits_changes_nothing_for_others(loaded: LoadedModel, define) -> None:
    def careless(context: LossContext) -> Target:
        """Writes into what it was given."""
        context.logits.mul_(-3).add_(torch.arange(VOCAB))
        return TowardsTokens(context.wrong)

    define("careless", careless)
    prompts = mixed_prompts((6, 9))
    among = Engine(loaded, ["careless", "inverse_logits", "least_likely"]).compute(prompts)
    alone = Engine(loaded, ["inverse_logits", "least_likely"]).compute(prompts)
    for name in ("inverse_logits", "least_likely"):
        found, expected = (by_prompt(one, "grad_norm") for one in (among, alone))
        np.testing.assert_array_equal(found["p/0", name], expected["p/0", name])
    for name in ("answer_logit", "correct", "above_wrong"):
        assert among.prompts[name].to_pylist()[:2] == alone.prompts[name].to_pylist()[:2]


def test_a_definition_that_changes_the_model_is_refused(define) -> None:
    def careless(context: LossContext) -> Target:
        """Normalises the model's own rows."""
        context.unembedding.div_(context.unembedding.norm(dim=1, keepdim=True))
        return TowardsTokens(context.wrong)

    define("careless", careless)
    own = prepared("tiny", *random_gpt2(2, 2, 8, VOCAB, 0))
    found = Engine(own, ["careless"]).compute(mixed_prompts((6, 9))).prompts
    assert found["status"].to_pylist() == ["failed"] * 2
    assert "careless writes into context.unembedding, the model's own weights" in found["reason"][0].as_py()


def test_an_unknown_wrong_answer_is_refused(loaded: LoadedModel) -> None:
    with pytest.raises(BadInput, match="unknown wrong answer 'nothing'"):
        Engine(loaded, ["nothing"])


def test_what_prompts_are_compared_with_is_run_from_the_first_difference_on(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    monkeypatch.setattr(passes, "tail_run", lambda *given: rows.append(given[2].at.shape[1]) or tail_run(*given))
    Engine(loaded, ["foil"]).compute(mixed_prompts((7, 6, 7)))
    # they share two tokens, or three, with their prompts
    assert rows == [7 - 2]
