"""Parts of compiled programs whose gradient is exactly zero though ablating them changes the output.

    python benchmarks/tracr_saturation.py

runs all inputs of both shipped programs and prints the tables of `docs/tracr.md`, in seconds on one core. A part is
ablated by setting its weights to zero. An output counts as changed where another symbol is largest, or where a number
moves by more than a hundredth of the range. Columns: on how many inputs ablation changes the output; on how many of
these the part's gradient norm is exactly zero in float32; the part's norm as a share of that of the largest part of the
same input, median over these inputs; over all inputs, the largest norm in float32 and in float64, and the largest
Taylor score `<W, G>` in float64, by size.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gbcd import tasks, wrong_answers
from gbcd.engine.engine import loss_gradient, packed_for, target_of
from gbcd.engine.scores import ScoreTable
from gbcd.evaluation.recovery import auroc
from gbcd.models import load as models
from gbcd.models.decoder import Options
from gbcd.models.load import LoadedModel
from gbcd.prompting.outputs import OutputSpace, space_of
from gbcd.prompting.tokens import EncodedPrompt, encode
from gbcd.wrong_answers.output_targets import CLOSE, OutputContext, output_context

PROGRAMS = ("tracr_xproportion", "tracr_reverse")


def drawn(name: str, loaded: LoadedModel, n: int | None) -> list[EncodedPrompt]:
    n = n or tasks.get(name).capacity(loaded.tokenizer)
    return encode(tasks.draw(name, loaded.tokenizer, n, seed=0), loaded.tokenizer)


def context(loaded: LoadedModel, prompts: list[EncodedPrompt], space: OutputSpace) -> OutputContext:
    logits = loaded.decoder.run(packed_for(loaded, [(prompt.ids,) for prompt in prompts])).logits
    return output_context(prompts, logits, space)


class Scores(NamedTuple):
    norms: Float[Tensor, "prompt component"]
    taylor: Float[Tensor, "prompt component"]


def scores(loaded: LoadedModel, prompts: list[EncodedPrompt], space: OutputSpace, definition: str) -> Scores:
    """What the engine computes for every part on every prompt, in the type of the model."""
    forward = loaded.decoder.run(packed_for(loaded, [(prompt.ids,) for prompt in prompts]), Options(graph=True))
    target = target_of(wrong_answers.get(definition), output_context(prompts, forward.logits, space))
    _, d_logits = loss_gradient(target, forward.logits)
    table = ScoreTable(loaded.components, len(prompts), {})
    forward.backward(d_logits, table)
    return Scores(table.values()["grad_norm"], table.values()["taylor"])


def without(loaded: LoadedModel, part: str) -> LoadedModel | None:
    """The model without one part; None where the part's weights are zero to begin with."""
    site = next(site for site in loaded.spec.maps if part in site.components)
    model = copy.deepcopy(loaded.model)
    weight = model.get_submodule(site.module).weight
    pieces = weight.data.chunk(len(site.components), 0 if site.axis == "out" else 1)
    piece = pieces[site.components.index(part)]
    if not bool(piece.any()):
        return None
    piece.zero_()
    return replace(loaded, model=model)


def changed(whole: OutputContext, ablated: OutputContext) -> Bool[Tensor, " prompt"]:
    if whole.space.symbols:
        differs = whole.outputs.argmax(2) != ablated.outputs.argmax(2)
    else:
        moved = (whole.outputs - ablated.outputs).abs().squeeze(2)
        differs = moved > CLOSE * (whole.space.high - whole.space.low)
    return (differs & whole.real).any(1)


def table(name: str, definition: str, n: int | None) -> None:
    single, double = models.load(name, "cpu", "float32"), models.load(name, "cpu", "float64")
    prompts, space = drawn(name, single, n), space_of(single.tokenizer)
    assert space is not None
    circuit = tasks.get(name).circuit
    assert circuit is not None
    found = scores(single, prompts, space, definition).norms
    wide, taylor = scores(double, prompts, space, definition)
    is_part = torch.tensor([component.is_circuit_part for component in single.components])
    shares = wide / wide[:, is_part].amax(1, keepdim=True)
    whole, unused = context(single, prompts, space), []
    print(f"\n`{name}`, `{definition}`, {len(prompts):,} inputs\n")
    print(
        "| part | published | output changes | of these, exactly 0 | share of the largest | norm | norm in float64 "
        "| Taylor |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for column, component in enumerate(single.components):
        if not component.is_circuit_part:
            continue
        ablated = without(single, component.name)
        if ablated is None:
            unused.append(component.name)
            continue
        matters = changed(whole, context(ablated, prompts, space))
        own, row = found[:, column], [f"`{component.name}`", "yes" if component.name in circuit.parts else "no"]
        row.append(f"{float(matters.float().mean()):.1%}")
        if bool(matters.any()):
            row += [
                f"{float((own[matters] == 0).float().mean()):.1%}",
                f"{float(shares[matters, column].median()):.1g}",
            ]
        else:
            row += ["-", "-"]
        row += [f"{float(value.max()):.2g}" for value in (own, wide[:, column], taylor[:, column].abs())]
        print(f"| {' | '.join(row)} |")
    print(f"\nNot used by the program (all weights zero): {', '.join(unused)}.")
    members = np.array([part.name in circuit.parts for part in single.components if part.is_circuit_part])
    for score, values in {"norm": found, "norm in float64": wide, "Taylor, mean of sizes": taylor.abs()}.items():
        print(f"AUROC of the published parts by {score}: {auroc(values[:, is_part].mean(0).numpy(), members):.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Parts without a gradient.")
    parser.add_argument("--prompts", type=int, help="some inputs of each program; all of them otherwise")
    torch.set_num_threads(1)
    asked = parser.parse_args()
    for program in PROGRAMS:
        for wrong in ("foil", "inverse_logits"):
            table(program, wrong, asked.prompts)
