"""How far float32 is from the truth: the engine against the float64 autograd oracle, part by part.

    python benchmarks/numerics.py --model reference --prompts 16
    python benchmarks/numerics.py --model reference --prompts 4 --dtype bfloat16
    python benchmarks/numerics.py --cancellation

For every kind of part the largest and the median relative error over prompts, layers, heads and wrong answers, of the
gradient norm, of the centred gradient norm and of the Taylor score (the last relative to `|W| |G|`).
"""

from __future__ import annotations

import argparse
import json

import torch
from gbcd.engine.mean_inputs import MeanInputs
from gbcd.engine.part_norms import BatchMeans, all_statistics
from torch import Tensor

from gbcd import tasks, wrong_answers
from gbcd.component import Component
from gbcd.engine import gram
from gbcd.engine.engine import Engine, loss_gradient, pass_for, scene_of
from gbcd.engine.oracle import Oracle
from gbcd.models import load as models
from gbcd.models.load import LoadedModel
from gbcd.prompting import tokens
from gbcd.prompting.tokens import EncodedPrompt

DEFINITIONS = ("logit_difference", "foil", "inverse_logits", "right_answer")


def engine_values(loaded: LoadedModel, prompts: list[EncodedPrompt], name: str, means: MeanInputs) -> dict[str, Tensor]:
    definition = wrong_answers.get(name)
    units = [(p.ids, p.twin_ids) if definition.reads_twin and p.twin_ids else (p.ids,) for p in prompts]
    forward = pass_for(loaded).forward(units)
    _, d_logits = loss_gradient(definition.define(scene_of(prompts, forward.logits[:, 0], loaded)), forward.logits)
    batch_means = BatchMeans(means, torch.zeros(len(prompts), dtype=torch.int64))
    found = all_statistics(forward.backward(d_logits), loaded.components, len(prompts), batch_means)
    assert found.centered_squares is not None
    return {
        "grad_norm": found.squares.clamp(min=0).sqrt(),
        "centered_grad_norm": found.centered_squares.clamp(min=0).sqrt(),
        "taylor": found.taylor,
    }


def oracle_values(
    oracle: Oracle, loaded: LoadedModel, prompts: list[EncodedPrompt], name: str, means: dict[str, Tensor]
) -> dict[str, Tensor]:
    names, weights = [component.name for component in loaded.components], oracle.weights()
    rows: dict[str, list[Tensor]] = {"grad_norm": [], "centered_grad_norm": [], "taylor": []}
    definition = wrong_answers.get(name)
    for prompt in prompts:
        unit = (prompt.ids, prompt.twin_ids) if definition.reads_twin and prompt.twin_ids else (prompt.ids,)
        target = definition.define(scene_of([prompt], oracle.logits(prompt.ids)[-1:].detach(), loaded))
        gradients = oracle.gradients(unit, target)
        rows["grad_norm"].append(torch.stack([gradients[n].norm() for n in names]))
        rows["taylor"].append(torch.stack([(gradients[n] * weights[n]).sum() for n in names]))
        with oracle.centered(means):
            gradients = oracle.gradients(unit, target)
        rows["centered_grad_norm"].append(torch.stack([gradients[n].norm() for n in names]))
    return {key: torch.stack(values) for key, values in rows.items()}


def cancellation() -> None:
    """Error of the norm where inputs share an offset and output gradients sum to nothing, as those of keys do."""
    torch.manual_seed(0)
    for offset in (0, 1, 10, 100, 1000):
        x = torch.randn(1, 1, 768, dtype=torch.float64) * offset + torch.randn(64, 20, 768, dtype=torch.float64)
        d = torch.randn(64, 20, 64, dtype=torch.float64)
        x, d = x.float(), (d - d.mean(1, keepdim=True)).float()
        truth = (x.double().transpose(1, 2) @ d.double()).norm(dim=(1, 2))
        routes = {
            "Gram": gram.slice_squares(gram.gram(x), d, 1),
            "product": gram.materialised_squares(x, d, 1, "out"),
        }
        errors = {name: (found[:, 0].clamp(min=0).sqrt().double() / truth - 1).abs() for name, found in routes.items()}
        print(f"offset {offset:5}  " + "  ".join(f"{name} {float(error.max()):.1e}" for name, error in errors.items()))


def kind_of(component: Component) -> str:
    if component.head is not None:
        return f"a.{component.part}"
    return component.name.replace(str(component.layer), "", 1) if component.layer >= 0 else component.name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--task", default="ioi")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--dtype", choices=list(models.DTYPES), default="float32")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cancellation", action="store_true", help="a sweep on made-up inputs instead")
    arguments = parser.parse_args()
    if arguments.cancellation:
        return cancellation()
    loaded = models.load(arguments.model, "cpu", arguments.dtype)
    prompts = tokens.encode(tasks.draw(arguments.task, loaded.tokenizer, 256, 0), loaded.tokenizer, loaded.context)
    task_means = Engine(loaded, [], 32).calibrate(prompts).tasks[arguments.task]
    vocab = loaded.unembedding.shape[0]
    means = MeanInputs(task_means, vocab, loaded.device, torch.float32)
    tables = {
        "embed.token": task_means.token_frequencies(vocab)[0],
        "embed.position": torch.eye(loaded.context),
    }
    oracle_means = {name: mean[0] for name, mean in task_means.means.items()} | tables
    prompts, oracle = prompts[: arguments.prompts], Oracle(loaded)
    weights = oracle.weights()
    weight_norms = torch.stack([weights[component.name].norm() for component in loaded.components])
    errors: dict[tuple[str, str], list[float]] = {}
    for name in DEFINITIONS:
        found = engine_values(loaded, prompts, name, means)
        expected = oracle_values(oracle, loaded, prompts, name, oracle_means)
        for statistic, values in found.items():
            truth = expected[statistic]
            # a Taylor score is signed and may cancel to nothing, so its error is held against |W| |G|
            scale = expected["grad_norm"] * weight_norms if statistic == "taylor" else truth
            error = (values.double() - truth).abs() / scale.clamp(min=1e-300)
            for column, component in enumerate(loaded.components):
                errors.setdefault((kind_of(component), statistic), []).extend(error[:, column].tolist())
    return report(errors, arguments.json)


def report(errors: dict[tuple[str, str], list[float]], as_json: bool) -> None:
    for (kind, statistic), values in errors.items():
        table = torch.tensor(values)
        row = {"part": kind, "statistic": statistic, "median": float(table.median()), "max": float(table.max())}
        print(
            json.dumps(row) if as_json else f"{kind:16} {statistic:20} median {row['median']:.1e}  max {row['max']:.1e}"
        )


if __name__ == "__main__":
    main()
