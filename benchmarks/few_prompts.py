"""How a ranking settles with prompts and with templates, and which part of its error more prompts do not take away.

    gbcd run --task ioi --model models/smollm2-135m --prompts 512 --out OUT
    gbcd evaluate OUT --pairs 64
    python benchmarks/few_prompts.py OUT --studies 16 32 64 128

The truth is the measured effects of OUT. First come draws of OUT's prompts (those that effects were measured on are in
no score) and of its templates; then small studies, each with prompts, means and seed of its own, as a user's are. The
tables are in docs/findings.md.

Error is 1 less Spearman's correlation r of a score with effects. Both are means over prompts, so both have noise. With
c_s and c_e, the correlations of two halves of the prompts and of two halves of the pairs, stepped up to the whole by
2c / (1 + c) (Spearman 1910, Brown 1910), r / sqrt(c_s c_e) estimates what is left of r without noise: what is missing
of 1 there is the score's own error, first order and other circuits, which no number of prompts takes away.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float, Int
from rich.console import Console

import gbcd
from gbcd.analysis.nodes import Key
from gbcd.analysis.stored import read_sample
from gbcd.evaluation.recovery import spearman
from gbcd.run.shards import read_plan
from gbcd.run.store import Store

Values = Float[np.ndarray, "prompt node"]

#: What prompts' values become: of attributions about counterfactuals the size of the mean, else the mean of sizes.
SCORES: dict[str, Callable[[Values], Float[np.ndarray, " node"]]] = {
    "attribution": lambda values: np.abs(values.mean(0)),
    "mean_attribution": lambda values: np.abs(values).mean(0),
    "writing_norm": lambda values: values.mean(0),
    "grad_norm": lambda values: values.mean(0),
}
#: How many of the largest effects are looked for among as many of the highest scores.
FIRST = 15
#: Templates are drawn for so many prompts.
AT_ONCE = 48


class Evaluated(NamedTuple):
    """A study and its measured effects; nodes in one order.

    Attributes:
        study: with nothing left open.
        nodes: their names.
        values: by statistic, of prompts without a measured effect.
        templates: of these prompts.
        drops: measured effects.
    """

    study: gbcd.Study
    nodes: list[str]
    values: dict[str, Values]
    templates: np.ndarray
    drops: Float[np.ndarray, "pair node"]


def read(out: str) -> Evaluated:
    """What `gbcd run` and `gbcd evaluate` left in `out`: of the first task and wrong answer."""
    store = Store(out)
    study = read_plan(store).study
    task = study.tasks[0]
    sample = read_sample(store, Key(task, study.wrong_answers[0]), tuple(SCORES))
    nodes = [node.name for node in sample.nodes]
    drops = pl.read_parquet(Path(out) / "effects" / f"effects.{task}.parquet").filter(pl.col("ablation") == "resample")
    wide = drops.pivot("component", index="prompt_id", values="drop")
    apart = ~sample.prompts["prompt_id"].is_in(wide["prompt_id"].implode()).to_numpy()
    values = {name: found[apart].astype(np.float64) for name, found in sample.values.items()}
    templates = sample.prompts["template"].to_numpy()[apart]
    return Evaluated(study, nodes, values, templates, wide.select(nodes).to_numpy())


def drawn_prompts(one: Evaluated, n: int, draws: int, rng: np.random.Generator) -> Iterator[Int[np.ndarray, " prompt"]]:
    """Draws of `n` prompts."""
    for _ in range(draws):
        yield rng.choice(len(one.templates), n, replace=False)


def drawn_templates(
    one: Evaluated, n: int, draws: int, rng: np.random.Generator
) -> Iterator[Int[np.ndarray, " prompt"]]:
    """Draws of `AT_ONCE` prompts of `n` templates that have so many between them."""
    names, counts = np.unique(one.templates, return_counts=True)
    for _ in range(draws):
        chosen = rng.choice(len(names), n, replace=False)
        if counts[chosen].sum() >= AT_ONCE:
            yield rng.choice(np.flatnonzero(np.isin(one.templates, names[chosen])), AT_ONCE, replace=False)


def settled(one: Evaluated, name: str, draws: Iterator[Int[np.ndarray, " prompt"]]) -> str:
    """Spearman with effects and how many of the first are found: mean over draws, and nine draws in ten."""
    effects = one.drops.mean(0)
    scores = np.array([SCORES[name](one.values[name][rows]) for rows in draws])
    if not len(scores):
        return "too few prompts"
    found = spearman(scores, np.broadcast_to(effects, scores.shape))
    top = set(np.argsort(-np.abs(effects), kind="stable")[:FIRST].tolist())
    hits = [len(top.intersection(np.argsort(-score, kind="stable")[:FIRST].tolist())) for score in scores]
    low, high = np.quantile(found, (0.05, 0.95))
    return f"{found.mean():.2f} ({low:.2f} to {high:.2f}); {np.mean(hits):4.1f} of {FIRST}"


def without_noise(one: Evaluated, name: str, draws: int, rng: np.random.Generator) -> str:
    """Where the error of the score of all prompts is: see the module."""
    score, values = SCORES[name], one.values[name]
    whole = float(spearman(score(values), one.drops.mean(0)))
    of_score = _reliability(values, score, draws, rng)
    of_effects = _reliability(one.drops, SCORES["attribution"], draws, rng)
    left = whole / np.sqrt(of_score * of_effects)
    return f"r {whole:.3f}, c_s {of_score:.3f}, c_e {of_effects:.3f}, r without noise {left:.3f}"


def _reliability(
    values: Values, score: Callable[[Values], Float[np.ndarray, " node"]], draws: int, rng: np.random.Generator
) -> float:
    found: list[float] = []
    for _ in range(draws):
        order = rng.permutation(len(values))
        halves = [score(values[order[start::2]]) for start in (0, 1)]
        found.append(float(spearman(*halves)))
    c = float(np.mean(found))
    return 2 * c / (1 + c)


def of_studies(one: Evaluated, n_prompts: int, seeds: int) -> dict[str, list[float]]:
    """Spearman of scores of studies of `n_prompts` with the effects; NaN where a study does not have the score."""
    found: dict[str, list[float]] = {name: [] for name in SCORES}
    with TemporaryDirectory() as folder:
        for seed in range(seeds):
            study = gbcd.Study(
                model=one.study.model,
                tasks=one.study.tasks[:1],
                wrong_answers=one.study.wrong_answers[:1],
                prompts_per_task=n_prompts,
                seed=one.study.seed + 1 + seed,
                out=f"{folder}/{seed}",
                compute=gbcd.Compute(workers=0),
            )
            summary = gbcd.run_study(study, Console(file=io.StringIO())).summary
            assert summary is not None
            nodes = summary.filter(pl.col("level") == "node")
            nodes = pl.DataFrame({"component": one.nodes}).join(
                nodes, on="component", how="left", maintain_order="left"
            )
            for name in SCORES:
                column = f"{name}_signed_mean" if name == "attribution" else f"{name}_mean"
                missing = nodes[column].null_count() > 0
                score = nodes[column].abs().to_numpy()
                found[name].append(np.nan if missing else float(spearman(score, one.drops.mean(0))))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="results of `gbcd run`, evaluated")
    parser.add_argument("--prompts", type=int, nargs="+", default=[4, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--templates", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--studies", type=int, nargs="*", default=[], help="prompts of small studies of their own")
    parser.add_argument("--seeds", type=int, default=3, help="small studies of each size")
    asked = parser.parse_args()
    one, rng = read(asked.out), np.random.default_rng(0)
    n_all = len(one.templates)
    print(f"{n_all} prompts of {len(set(one.templates))} templates, effects of {len(one.drops)} others")
    for name in SCORES:
        print(f"\n{name}")
        for n in [*(n for n in asked.prompts if n < n_all), n_all]:
            print(f"{n:5d} prompts    {settled(one, name, drawn_prompts(one, n, asked.draws, rng))}")
        for n in asked.templates:
            print(f"{n:5d} templates  {settled(one, name, drawn_templates(one, n, asked.draws, rng))}")
        print(f"  all prompts    {without_noise(one, name, asked.draws, rng)}")
    for n_prompts in asked.studies:
        for name, found in of_studies(one, n_prompts, asked.seeds).items():
            print(f"studies of {n_prompts:4d}  {name:18s} {np.mean(found):.2f} ({min(found):.2f} to {max(found):.2f})")


if __name__ == "__main__":
    main()
