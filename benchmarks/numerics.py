"""How far float32 is from the truth: the engine against the float64 autograd oracle, part by part.

    python benchmarks/numerics.py --model reference --prompts 8
    python benchmarks/numerics.py --model reference --prompts 4 --dtype bfloat16
    python benchmarks/numerics.py --cancellation

For every kind of part the largest and the median relative error over prompts, layers, heads and losses: of the gradient
norm and the contrast norm, and of attributions against zero and the counterfactual (of those relative to `|W| |G|`).
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gbcd import tasks, wrong_answers
from gbcd.component import Component
from gbcd.engine import gram
from gbcd.engine.engine import Engine, loss_context
from gbcd.engine.oracle import Oracle
from gbcd.models import load as models
from gbcd.models.load import LoadedModel
from gbcd.prompting.tokens import EncodedPrompt

DEFINITIONS = ("margin", "foil", "inverse_logits", "right_answer")
NORMS, ATTRIBUTIONS = ("grad_norm", "contrast_norm"), ("taylor", "attribution")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--task", default="ioi")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--dtype", choices=list(models.DTYPES), default="float32")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cancellation", action="store_true", help="a sweep on made-up inputs instead")
    arguments = parser.parse_args()
    if arguments.cancellation:
        return cancellation()
    loaded = models.load(arguments.model, "cpu", arguments.dtype)
    prompts = loaded.encode(tasks.draw(arguments.task, loaded.tokenizer, arguments.prompts, 0))
    return report(errors_of(loaded, prompts), arguments.json)


def errors_of(loaded: LoadedModel, prompts: list[EncodedPrompt]) -> dict[tuple[str, str], list[float]]:
    """Relative errors by kind of part and statistic."""
    oracle, found = Oracle(loaded), Engine(loaded, DEFINITIONS).compute(prompts).norms
    weights = oracle.weights()
    weight_norms = torch.stack([weights[component.name].norm() for component in loaded.components])
    errors: dict[tuple[str, str], list[float]] = {}
    for name in DEFINITIONS:
        rows = found.filter(np.array(found["wrong_answer"].to_pylist()) == name)
        for row, prompt in enumerate(prompts):
            expected = oracle_values(oracle, loaded, prompt, name)
            for statistic, truth in expected.items():
                norm = expected["grad_norm" if statistic == "taylor" else "contrast_norm"]
                scale = norm * weight_norms if statistic in ATTRIBUTIONS else truth
                values = torch.tensor(rows[statistic][row].as_py(), dtype=torch.float64)
                error = (values - truth).abs() / scale.clamp(min=1e-300)
                for column, component in enumerate(loaded.components):
                    errors.setdefault((kind_of(component), statistic), []).append(float(error[column]))
    return errors


def oracle_values(oracle: Oracle, loaded: LoadedModel, prompt: EncodedPrompt, name: str) -> dict[str, Tensor]:
    names, weights = [component.name for component in loaded.components], oracle.weights()
    target = wrong_answers.get(name).define(loss_context([prompt], oracle.logits(prompt.ids)[-1:].detach(), loaded))

    def both(norm: str, attribution: str) -> dict[str, Float[Tensor, " part"]]:
        gradients = oracle.gradients((prompt.ids,), target)
        return {
            norm: torch.stack([gradients[part].norm() for part in names]),
            attribution: torch.stack([(gradients[part] * weights[part]).sum() for part in names]),
        }

    found = both("grad_norm", "taylor")
    assert prompt.reference_ids is not None
    with oracle.compared(oracle.inputs(prompt.reference_ids)):
        return found | both("contrast_norm", "attribution")


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
    if component.head is not None or component.is_group:
        return f"a.{component.part}"
    return component.name.replace(str(component.layer), "", 1) if component.layer >= 0 else component.name


def report(errors: dict[tuple[str, str], list[float]], as_json: bool) -> None:
    for (kind, statistic), values in errors.items():
        row = {"part": kind, "statistic": statistic, "median": float(np.median(values)), "max": max(values)}
        text = f"{kind:16} {statistic:14} median {row['median']:.1e}  max {row['max']:.1e}"
        print(json.dumps(row) if as_json else text)


if __name__ == "__main__":
    main()
