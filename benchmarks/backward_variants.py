"""Does another backward pass, or another use of the same one, find the circuit better?

    python benchmarks/backward_variants.py --models reference DIR DIR --json benchmarks/results/backward_variants.json

The forward pass is exact in every variant (a plain autograd one over the library's GPT-2 weights, checked against the
library's logits); what changes is how gradients come back:

    plain          as they are
    soft softmax   attention's gradient is that of softmax(scores / 4), and
    frozen norm    layer norms hand gradients on as if their scale were fixed, both as in GIM (Edin et al. 2025,
                   arXiv 2505.17630)
    both           of these

With X what a node's last map reads, Xbar its mean over prompts of the template and D the gradients by its output:

    writing norm   ||(X - Xbar)^T D||, the default score of `gbcd run`
    Taylor         <W, (X - Xbar)^T D>: the first-order effect of replacing the node by its template mean; mean of sizes
                   over prompts, or size of the mean

The loss is towards `inverse_logits`. `less random` and `over random` relate the writing norm to that of a random
target, each divided by its mean over nodes; `ranks` add up those of several scores. Truth, prompts, groups and
intervals are those of `discovery.py`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from discovery_steps.cells import case_of, effects_of
from discovery_steps.gradient_scores import RANDOM
from discovery_steps.groups import Found, averages, groups_of, held_against, with_differences
from discovery_steps.tables import figure, markdown
from gbcd.evaluation.replicas import means, poisson_weights
from jaxtyping import Float, Int
from rich.progress import track
from scipy.stats import rankdata
from torch import Tensor

from gbcd import tasks, wrong_answers
from gbcd.engine.calibration import TaskMeans
from gbcd.engine.engine import Engine, loss_gradient, scene_of, target_of
from gbcd.evaluation.pairs import alone
from gbcd.evaluation.recovery import Score
from gbcd.models import load as models
from gbcd.models.load import LoadedModel
from gbcd.prompting.tokens import EncodedPrompt, encode
from gbcd.versions import versions

LANGUAGE_TASKS = ("ioi", "greater_than", "docstring", "induction")
ANSWERS = ("inverse_logits", RANDOM)
WRITING, SIZES, MEAN = "writing norm", "Taylor, mean of sizes", "Taylor, size of the mean"


class Variant(NamedTuple):
    name: str
    temperature: float = 1.0
    frozen_norm: bool = False


VARIANTS = (
    Variant("plain"),
    Variant("soft softmax", temperature=4.0),
    Variant("frozen norm", frozen_norm=True),
    Variant("both", temperature=4.0, frozen_norm=True),
)


class Written(NamedTuple):
    """What the nodes of one kind in one layer write: inputs, outputs and weight of the map, in `n_nodes` slices."""

    mean: str
    x: Float[Tensor, "batch pos d_in"]
    y: Float[Tensor, "batch pos d"]
    weight: Float[Tensor, "d_in d"]
    n_nodes: int


def forward(
    loaded: LoadedModel, ids: Int[Tensor, "batch pos"], variant: Variant
) -> tuple[Float[Tensor, "batch vocab"], list[Written]]:
    """Logits at the last position, and what nodes write, with the graph that the variant's backward pass takes."""
    model: Any = loaded.model
    config, body = model.config, model.transformer
    x = (body.wte(ids) + body.wpe(torch.arange(ids.shape[1]))).detach().requires_grad_()
    written: list[Written] = []
    for layer, block in enumerate(body.h):
        z = _attended(_normed(x, block.ln_1, variant), block.attn, config.n_head, variant)
        out = block.attn.c_proj
        written.append(Written(f"a{layer}.o", z, z @ out.weight + out.bias, out.weight, config.n_head))
        x = x + written[-1].y
        hidden = block.mlp.act(block.mlp.c_fc(_normed(x, block.ln_2, variant)))
        out = block.mlp.c_proj
        written.append(Written(f"m{layer}.out", hidden, hidden @ out.weight + out.bias, out.weight, 1))
        x = x + written[-1].y
    return model.lm_head(_normed(x[:, -1], body.ln_f, variant)), written


def _normed(x: Float[Tensor, "*rows d"], norm: Any, variant: Variant) -> Float[Tensor, "*rows d"]:
    scale = (x.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
    if variant.frozen_norm:
        scale = scale.detach()
    return (x - x.mean(-1, keepdim=True)) / scale * norm.weight + norm.bias


def _attended(
    x: Float[Tensor, "batch pos d"], attention: Any, n_heads: int, variant: Variant
) -> Float[Tensor, "batch pos d"]:
    query, key, value = (part.unflatten(2, (n_heads, -1)).transpose(1, 2) for part in attention.c_attn(x).chunk(3, 2))
    length = x.shape[1]
    mask = torch.full((length, length), -torch.inf).triu(1)
    scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1]) + mask
    pattern = scores.softmax(-1)
    if variant.temperature != 1:
        soft = (scores / variant.temperature).softmax(-1)
        pattern = pattern.detach() + soft - soft.detach()
    return (pattern @ value).transpose(1, 2).flatten(2)


def per_prompt(
    loaded: LoadedModel, encoded: Sequence[EncodedPrompt], variant: Variant, template_means: TaskMeans
) -> dict[tuple[str, str], Float[np.ndarray, "prompts nodes"]]:
    """Writing norms and signed Taylor scores of all nodes, by wrong answer and name."""
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    batches = alone(encoded, 64).batches
    for batch in batches:
        prompts = [encoded[row] for row in batch.rows]
        groups = [template_means.groups.index(prompt.prompt.template) for prompt in prompts]
        with torch.enable_grad():
            logits, written = forward(loaded, batch.ids, variant)
        theirs: Any = loaded.model
        torch.testing.assert_close(logits, theirs(batch.ids).logits[:, -1], rtol=1e-3, atol=1e-3)
        for answer in ANSWERS:
            target = target_of(wrong_answers.get(answer), scene_of(prompts, logits, loaded))
            d_logits = loss_gradient(target, logits.unsqueeze(1))[1][:, 0]
            gradients = torch.autograd.grad(logits, [one.y for one in written], d_logits, retain_graph=True)
            pairs = [
                _norm_and_taylor(one, d, template_means.means[one.mean][groups, : batch.ids.shape[1]])
                for one, d in zip(written, gradients, strict=True)
            ]
            for name, columns in zip((WRITING, "taylor"), zip(*pairs, strict=True), strict=True):
                found.setdefault((answer, name), []).append(torch.cat(columns, 1).double().numpy())
    order = np.argsort([row for batch in batches for row in batch.rows])
    return {key: np.concatenate(pieces)[order] for key, pieces in found.items()}


def _norm_and_taylor(
    one: Written, d: Float[Tensor, "batch pos d"], mean: Float[Tensor, "batch pos d_in"]
) -> tuple[Float[Tensor, "batch nodes"], Float[Tensor, "batch nodes"]]:
    x = (one.x.detach() - mean).unflatten(2, (one.n_nodes, -1))
    gradient = torch.einsum("bpni,bpo->bnio", x, d)
    weight = one.weight.unflatten(0, (one.n_nodes, -1))
    return gradient.square().sum((2, 3)).sqrt(), (gradient * weight).sum((2, 3))


def scores_of(
    values: dict[tuple[str, str], Float[np.ndarray, "prompts nodes"]],
    weights: Float[np.ndarray, "replicas prompts"],
    variant: Variant,
) -> Iterator[Score]:
    """All scores of one variant, with replicas."""
    own, random = (values[answer, WRITING] for answer in ANSWERS)
    taylor = values[ANSWERS[0], "taylor"]
    single = {
        WRITING: means(weights, own),
        SIZES: means(weights, np.abs(taylor)),
        MEAN: np.abs(means(weights, taylor)),
    }
    share, random_share = (one / one.mean(axis=1, keepdims=True) for one in (single[WRITING], means(weights, random)))
    ranks = {name: rankdata(replicas, axis=1) for name, replicas in single.items()}
    derived = {
        "writing norm less random": share - random_share,
        "writing norm over random": share / random_share,
        "ranks of writing norm and Taylor, mean of sizes": ranks[WRITING] + ranks[SIZES],
        "ranks of all three": ranks[WRITING] + ranks[SIZES] + ranks[MEAN],
    }
    for name, replicas in (single | derived).items():
        yield Score(f"{variant.name}: {name}", ANSWERS[0], replicas, 2.0 if "random" not in name else 3.0)


def measure(name: str, task: str, n_prompts: int, n_pairs: int, seed: int) -> list[Found]:
    """All variants on one task of one model."""
    torch.set_num_threads(1)
    loaded = models.load(name, "cpu", "float32")
    encoded = encode(tasks.draw(task, loaded.tokenizer, n_prompts, seed), loaded.tokenizer, loaded.context)
    rng = np.random.default_rng(seed)
    truth, _ = effects_of(case_of(loaded, task, encoded[:n_pairs], rng), ("resample",))
    weights = poisson_weights(n_prompts, rng)
    calibration = Engine(loaded, wrong_answers=ANSWERS, batch_size=64).calibrate(encoded, "template")
    return [
        held_against(truth, score, Path(name).name, task)
        for variant in VARIANTS
        for score in scores_of(per_prompt(loaded, encoded, variant, calibration.tasks[task]), weights, variant)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Other backward passes, and other uses of the same one.")
    parser.add_argument("--models", nargs="+", default=["reference"], help="reference, and folders with other seeds")
    parser.add_argument("--tasks", nargs="+", default=list(LANGUAGE_TASKS))
    parser.add_argument("--prompts", type=int, default=384)
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", help="file for all figures")
    given = parser.parse_args()
    sizes = (given.prompts, given.pairs, given.seed)
    with ProcessPoolExecutor(given.workers, get_context("spawn")) as pool:
        waiting = [pool.submit(measure, model, task, *sizes) for model in given.models for task in given.tasks]
        found = [one for cell in track(waiting, description="tasks of models") for one in cell.result()]
    names = [Path(model).name for model in given.models]
    leads = with_differences(found, ANSWERS[0], f"plain: {WRITING}")
    rows = list(averages(leads, groups_of(names)))
    if given.json:
        settings = {"models": names, "tasks": given.tasks, "prompts": given.prompts, "pairs": given.pairs}
        record = {"versions": versions(), "settings": settings | {"seed": given.seed}, "figures": rows}
        Path(given.json).write_text(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n")
    columns = ("spearman", "spearman_lead", "auroc", "auroc_lead")
    for group in ("all", "held out") if len(names) > 1 else names:
        chosen = [row for row in rows if row["group"] == group and row["task"] == "all"]
        lines = [
            [row["method"], *(figure(row, name) for name in columns)]
            for row in sorted(chosen, key=lambda row: -row["spearman"])
        ]
        print(markdown(f"Towards {ANSWERS[0]}: {group}", ["score", *columns], lines))


if __name__ == "__main__":
    main()
