"""The decoder against the library, and its shortcuts against doing without them."""

from __future__ import annotations

import pytest
import torch
from library_modules import block, last_logits, parts, place
from oracle_values import input_names, loaded_model
from random_prompts import VOCAB, random_prompts
from tiny_models import FAMILIES

from gbcd.engine.engine import loss_gradient, packed_for
from gbcd.engine.oracle import Oracle
from gbcd.engine.scores import ScoreTable
from gbcd.models.decoder import Start, by_used_rows
from gbcd.models.forward import Options, SlicePatch
from gbcd.wrong_answers.losses import TowardsTokens

#: Families in which the library rounds nothing to float32.
EXACT = ("gpt2", "gpt_neox", "gpt_neox_serial", "opt")
LENGTHS = (7, 3, 11)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_librarys_for_prompts_and_twins_of_all_lengths(family):
    loaded, prompts = loaded_model(family), random_prompts(LENGTHS, 5)
    oracle, rounding = Oracle(loaded), 1e-10 if family in EXACT else 1e-5
    alone = loaded.decoder.run(packed_for(loaded, [(one.ids,) for one in prompts])).logits
    pairs = loaded.decoder.run(packed_for(loaded, [(one.ids, one.twin_ids) for one in prompts])).logits
    for row, prompt in enumerate(prompts):
        for found, ids in ((alone[row, 0], prompt.ids), (pairs[row, 0], prompt.ids), (pairs[row, 1], prompt.twin_ids)):
            torch.testing.assert_close(found, last_logits(loaded.model, ids), rtol=rounding, atol=rounding)
            torch.testing.assert_close(found, oracle.logits(ids)[-1].detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_block_at_the_answers_alone_gives_what_every_token_gives(family):
    loaded, prompts = loaded_model(family), random_prompts(LENGTHS, 5)
    packed = packed_for(loaded, [(one.ids, one.twin_ids) for one in prompts])
    found = []
    for every_token in (False, True):
        run = loaded.decoder.run(packed, Options(graph=True, record=["m2.out"], every_token=every_token))
        assert run.values["m2.out"].shape[1] == (packed.ids.shape[1] if every_token else 2)
        table = ScoreTable(loaded.components, len(prompts), {})
        d_logits = torch.ones_like(run.logits) / VOCAB + run.logits
        found.append((run.logits, run.backward(d_logits, table), table.values()))
    torch.testing.assert_close(*(one[0] for one in found), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(*(one[1] for one in found), rtol=1e-10, atol=1e-10)
    for name in ("grad_norm", "taylor"):
        torch.testing.assert_close(*(one[2][name] for one in found), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_begins_at_any_block_and_its_gradient_is_that_of_the_block(family):
    loaded, prompts = loaded_model(family), random_prompts(LENGTHS, 5)
    packed = packed_for(loaded, [(one.ids,) for one in prompts])
    target = TowardsTokens([one.wrong_ids for one in prompts])
    whole = loaded.decoder.run(packed, Options(record=["x1", "x2"]))
    oracle = Oracle(loaded)
    for layer in (1, 2):
        start = Start(layer, whole.values[f"x{layer}"])
        run = loaded.decoder.run(packed, Options(graph=True), start)
        torch.testing.assert_close(run.logits, whole.logits, rtol=1e-11, atol=1e-11)
        d_stream = run.backward(loss_gradient(target, run.logits)[1], lambda gradient: None)
        for row, prompt in enumerate(prompts):
            stream, d = stream_and_gradient(family, oracle, layer, prompt)
            torch.testing.assert_close(start.residual[row, : len(prompt.ids)], stream, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(d_stream[row, : len(prompt.ids)], d, rtol=1e-9, atol=1e-11)
            assert not d_stream[row, len(prompt.ids) :].any()


def stream_and_gradient(family, oracle, layer, prompt):
    kept = []

    def apart(_module, inputs, options):
        stream = inputs[0] if inputs else options["hidden_states"]
        kept.append(stream.detach().clone().requires_grad_())
        return ((kept[0], *inputs[1:]), options) if inputs else ((), options | {"hidden_states": kept[0]})

    hook = block(family, oracle.model, layer).register_forward_pre_hook(apart, with_kwargs=True)
    logits = oracle.logits(prompt.ids)[-1]
    hook.remove()
    loss = TowardsTokens([prompt.wrong_ids])(logits.view(1, 1, -1))
    (d,) = torch.autograd.grad(loss.sum(), kept[0])
    return kept[0].detach()[0], d[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_keeps_what_every_module_reads(family):
    loaded, (prompt,) = loaded_model(family), random_prompts((7,), 5)
    oracle = Oracle(loaded)
    run = loaded.decoder.run(packed_for(loaded, [(prompt.ids,)]), Options(keep=True, every_token=True))
    kept, inputs = {one.name: one.x[0] for one in run.inputs()}, oracle.inputs(prompt.ids)
    names = input_names(oracle)
    assert kept.keys() == set(names.values())
    for path, name in names.items():
        torch.testing.assert_close(kept[name], inputs[path], rtol=1e-9, atol=1e-10, msg=name)
    at_answers = loaded.decoder.run(packed_for(loaded, [(prompt.ids,)]), Options(keep=True)).inputs()
    for rows in at_answers:
        if rows.at_answers:
            torch.testing.assert_close(rows.x[0], kept[rows.name][-1:], rtol=1e-9, atol=1e-10, msg=rows.name)
    assert {rows.name for rows in at_answers if rows.at_answers} >= {"a2.o", "m2.in", "final.norm", "unembed"}


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_patch_of_any_value_is_a_hook_placed_by_hand(family, layer):
    """In the last block, queries, what heads hand out, and MLPs exist at the answers: one row stands for it."""
    loaded, prompts = loaded_model(family), random_prompts((7, 4), 5)
    model = Oracle(loaded).model
    packed = packed_for(loaded, [(one.ids,) for one in prompts])
    generator = torch.Generator().manual_seed(layer)
    names = [f"a{layer}.{part}" for part in "qkvz"] + [f"m{layer}.{part}" for part in parts(family)]
    recorded = loaded.decoder.run(packed, Options(record=names))
    clean = [last_logits(model, one.ids) for one in prompts]
    for name in names:
        value = torch.randn(recorded.values[name].shape, generator=generator, dtype=torch.float64)
        n_slices = value.shape[2]
        where = torch.zeros(2, n_slices, dtype=torch.bool)
        where[0, n_slices - 1], where[1, 0] = True, True
        for shared in (False, True):  # one value for all examples
            value = value[:1] if shared else value
            run = loaded.decoder.run(packed, Options(patches={name: SlicePatch(value, where)}))
            for row, prompt in enumerate(prompts):
                other = value[0 if shared else row]
                other = other[: len(prompt.ids)].expand(len(prompt.ids), -1, -1)
                wanted = place(family, model, name).replaced(
                    other, [n_slices - 1 if row == 0 else 0], lambda prompt=prompt: last_logits(model, prompt.ids)
                )
                assert (wanted - clean[row]).abs().max() > 1e-4, name
                torch.testing.assert_close(run.logits[row, 0], wanted, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "gemma2", "gpt_neox"])
def test_what_is_recorded_under_a_name_is_what_the_library_computes_there(family):
    loaded, (prompt,) = loaded_model(family), random_prompts((7,), 5)
    model = Oracle(loaded).model
    names = [f"a1.{part}" for part in "qkvz"] + [f"m1.{part}" for part in parts(family)]
    run = loaded.decoder.run(packed_for(loaded, [(prompt.ids,)]), Options(record=names))
    for name in names:
        where = place(family, model, name)
        whole = where.read(lambda: last_logits(model, prompt.ids)).view(7, -1)
        for index, chosen in enumerate(where.slices):
            torch.testing.assert_close(run.values[name][0, :, index], whole[:, chosen], rtol=1e-9, atol=1e-10, msg=name)


def test_a_patch_does_not_reach_the_examples_that_it_is_not_for():
    loaded, prompts = loaded_model("llama"), random_prompts((7, 7), 5)
    packed = packed_for(loaded, [(one.ids,) for one in prompts])
    clean = loaded.decoder.run(packed).logits
    where = torch.tensor([[True], [False]])
    patches = {f"m{layer}.out": SlicePatch(torch.zeros(1, 1, 1, 24, dtype=torch.float64), where) for layer in range(3)}
    found = loaded.decoder.run(packed, Options(patches=patches)).logits
    torch.testing.assert_close(found[1], clean[1], rtol=1e-12, atol=1e-12)
    assert (found[0] - clean[0]).abs().max() > 0.1


@pytest.mark.parametrize("n_used", [0, 2, 9, 40])
def test_rows_that_a_loss_does_not_read_are_not_missed(n_used: int) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(40, 6, generator=generator)
    gradient = torch.zeros(3, 2, 40)
    gradient[..., torch.randperm(40, generator=generator)[:n_used]] = torch.randn(3, 2, n_used, generator=generator)
    torch.testing.assert_close(by_used_rows(gradient, table), gradient @ table)
