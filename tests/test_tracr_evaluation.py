"""Compiled programs shown and evaluated: effects by hand, and the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from evaluation_cases import circuits_of, effects_of
from small_runs import finished, small_study
from test_cli import gbcd
from torch import Tensor

from gbcd import tasks
from gbcd.evaluation.metrics import metric_for
from gbcd.evaluation.places import Place, places_of
from gbcd.models import load as models
from gbcd.models.load import LoadedModel
from gbcd.prompting.outputs import space_of
from gbcd.prompting.tokens import EncodedPrompt, encode

Case = tuple[LoadedModel, list[EncodedPrompt], list[Place]]


@pytest.fixture(scope="module", params=["tracr_reverse", "tracr_xproportion"])
def case(request: pytest.FixtureRequest) -> Case:
    loaded = models.load(request.param, "cpu", "float64")
    prompts = encode(tasks.draw(loaded.name, loaded.tokenizer, 24, seed=2), loaded.tokenizer, loaded.context)
    return loaded, prompts, places_of(loaded.components, "node")


def by_hand(model: Any, ids: tuple[int, ...], replaced: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Outputs, and what each node writes, with `replaced` nodes writing that instead; written out, one head a layer."""
    x = model.token_embed.weight[list(ids)] + model.pos_embed.weight[: len(ids)]
    written: dict[str, Tensor] = {}
    for layer, block in enumerate(model.layers):
        attn, mlp = block.attn, block.mlp
        q, k, v = (x @ part.weight.T for part in (attn.query, attn.key, attn.value))
        pattern = torch.softmax(q @ k.T / attn.d_head**0.5, 1)
        written[f"a{layer}.h0"] = replaced.get(f"a{layer}.h0", pattern @ v @ attn.linear.weight.T)
        x = x + written[f"a{layer}.h0"]
        written[f"m{layer}"] = replaced.get(f"m{layer}", torch.relu(x @ mlp.linear_1.weight.T) @ mlp.linear_2.weight.T)
        x = x + written[f"m{layer}"]
    return x @ model.unembed.weight.T, written


def minus_error(loaded: LoadedModel, prompt: EncodedPrompt, outputs: Tensor) -> float:
    space = space_of(loaded.tokenizer)
    assert prompt.outputs is not None
    assert space is not None
    right = torch.tensor(prompt.outputs.right, dtype=torch.float64)
    target = torch.eye(space.width, dtype=torch.float64)[right.long()] if space.symbols else right[:, None]
    return -float(((outputs[1:] - target) ** 2).sum(1).mean())


def test_effects_are_those_of_ablation_by_hand(case: Case) -> None:
    loaded, prompts, places = case
    metric = metric_for("mean_squared_error", prompts, loaded.device, space_of(loaded.tokenizer))
    effects = effects_of(loaded, prompts, places, metric, ["mean", "zero"])
    written = [by_hand(loaded.model, prompt.ids, {})[1] for prompt in prompts]
    longest = max(len(prompt.ids) for prompt in prompts)
    means = {
        point.name: torch.stack(
            [torch.stack([one[point.name][at] for one in written if len(one[point.name]) > at]).mean(0)
             for at in range(longest)]
        )
        for point in places
    }  # fmt: skip
    for row, prompt in enumerate(prompts):
        clean = minus_error(loaded, prompt, by_hand(loaded.model, prompt.ids, {})[0])
        assert effects.clean[row] == pytest.approx(clean, abs=1e-9)
        mean = {name: value[: len(prompt.ids)] for name, value in means.items()}
        away = minus_error(loaded, prompt, by_hand(loaded.model, prompt.ids, mean)[0])
        assert effects.counterfactual[row] == pytest.approx(away, abs=1e-9)
        for column, point in enumerate(places):
            for ablation, value in (("mean", mean[point.name]), ("zero", torch.zeros_like(mean[point.name]))):
                found = minus_error(loaded, prompt, by_hand(loaded.model, prompt.ids, {point.name: value})[0])
                assert effects.drops[ablation][row, column] == pytest.approx(clean - found, abs=1e-9), point.name


def test_a_circuit_keeps_its_members_and_has_the_rest_at_their_means(case: Case) -> None:
    loaded, prompts, places = case
    metric = metric_for("mean_squared_error", prompts, loaded.device, space_of(loaded.tokenizer))
    names = [point.name for point in places]
    found = circuits_of(loaded, prompts, places, [names, [], names[1:]], metric, "mean")
    effects = effects_of(loaded, prompts, places, metric, ["mean"])
    np.testing.assert_allclose(found[0], effects.clean, atol=1e-9)
    np.testing.assert_allclose(found[1], effects.counterfactual, atol=1e-9)
    np.testing.assert_allclose(found[2], effects.clean - effects.drops["mean"][:, 0], atol=1e-9)


def test_the_published_circuit_is_what_ablation_finds(case: Case) -> None:
    loaded, prompts, places = case
    metric = metric_for("mean_squared_error", prompts, loaded.device, space_of(loaded.tokenizer))
    effects = effects_of(loaded, prompts, places, metric, ["mean"]).drops["mean"].mean(0)
    circuit = tasks.get(loaded.name).circuit
    assert circuit is not None
    helping = {point.name for point, drop in zip(places, effects, strict=True) if abs(drop) > 1e-3}
    assert helping <= set(circuit.nodes)


def test_a_study_of_a_program_is_evaluated(tmp_path: Path) -> None:
    study = small_study(
        tmp_path, model="tracr_reverse", tasks=("tracr_reverse",), prompts_per_task=48, wrong_answers=("foil",)
    )
    finished(study)
    status, said, _ = gbcd("evaluate", study.out, "--pairs", "40")
    assert status == 0
    assert "tracr_reverse, foil: against mean ablation on 40 pairs" in said
    figures, effects = (pl.read_parquet(f"{study.out}/{name}.parquet") for name in ("evaluation", "effects"))
    assert set(figures["truth"].drop_nulls()) == {"mean", "published"}
    assert set(figures["method"]) >= {"grad_norm", "centered_grad_norm", "taylor", "weight_norm", "random"}
    assert set(effects["method"]) == {"mean", "direct_effect"}
    assert effects.filter(method="mean", component="a3.h0")["value"].item() > 0.1
    assert pl.read_parquet(f"{study.out}/faithfulness.parquet").filter(size=1.0)["faithfulness"].to_list()[0] == 1.0


def test_a_program_is_shown_on_its_own_model_with_every_definition() -> None:
    status, said, _ = gbcd("show", "tracr_reverse", "-n", "1", "--seed", "0")
    assert status == 0
    lines = {line[:20].strip(): line[20:] for line in said.splitlines()}
    assert lines["prompt"] == "<bos>|3|2|2"
    assert lines["answer"] == "2 2 3"
    assert lines["foil"] == "3:1.00 | 3:1.00 | 1:1.00"
    assert lines["model outputs"] == lines["right_answer"] == "2:1.00 | 2:1.00 | 3:1.00"
    assert lines["most_dissimilar"].startswith("undefined: most_dissimilar is not defined for answers of")
    status, said, _ = gbcd("show", "tracr_xproportion", "-n", "3")
    assert status == 0
    assert "inverse_logits" in said
    status, _, refused = gbcd("show", "tracr_reverse", "--model", "reference")
    assert status == 2
    assert "choose it with --model tracr_reverse" in refused
