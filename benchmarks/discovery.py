"""Which score finds the circuit? Every wrong answer and every score against measured effects.

    python benchmarks/discovery.py --models reference DIR --json benchmarks/results/discovery.json

For each model and language task: resample effects of all heads and MLPs on `--pairs` prompts with their
counterfactuals, baselines on the same prompts, and the engine's norms of `--prompts` prompts for every definition of
the wrong answer, centred by position and by template. A score turns the norms of a node's parts into one number:

    norm            all parts of a node                    writing norm   the part that writes to the residual stream
    reading norm    v of a head, in of an MLP              query-key norm q and k of a head (in of an MLP)
    Taylor          of what the node writes: mean of sizes, size of the mean, root mean square
    signal          norm of the mean gradient, unbiased (coherence)

Figures are held against the sizes of mean resample effects: Spearman over all nodes, AUROC for nodes whose effect is at
least a tenth of the gap. Intervals come from 200 Poisson replicas of prompts; where several tasks or models are
averaged, replicas are averaged in step. `random_token` and `right_answer` are controls.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from gbcd import tasks, wrong_answers
from gbcd.architectures import models
from gbcd.architectures.models import LoadedModel
from gbcd.evaluation.agreement import auroc, spearman
from gbcd.evaluation.attribution import attribute
from gbcd.evaluation.faithfulness import CircuitRunner, faithfulness_curves
from gbcd.evaluation.interventions import measure_effects
from gbcd.evaluation.metrics import metric_for
from gbcd.evaluation.pairs import pair_up
from gbcd.evaluation.points import points
from gbcd.evaluation.recovery import Score, Truth, measured_truth
from gbcd.evaluation.replicas import interval, means, poisson_weights
from gbcd.gradients.engine import Engine
from gbcd.gradients.tables import ShardTables
from gbcd.prompting.tokens import EncodedPrompt, encode
from gbcd.reduction.nodes import NodeMap
from gbcd.reduction.shard_values import Key, finite_values, keys, rows_of
from gbcd.versions import versions
from gbcd.wrong_answers import Scene, wrong_answer
from gbcd.wrong_answers.losses import TowardsTokens
from gbcd.wrong_answers.meaning import load_embedder, with_farthest

LANGUAGE_TASKS = ("ioi", "greater_than", "docstring", "induction")
CENTERINGS = ("position", "template")
BASELINES = ("attribution_patching", "attribution_patching_ig", "hisp", "direct_effect")


@wrong_answer("random_token")
def random_token(scene: Scene) -> TowardsTokens:
    """Cross-entropy towards a token drawn from the vocabulary: a target that says nothing of the task."""
    generator = torch.Generator().manual_seed(scene.logits.shape[0])
    drawn = torch.randint(scene.logits.shape[1], (len(scene.logits),), generator=generator)
    return TowardsTokens([(token,) for token in drawn.tolist()])


class Found(NamedTuple):
    """One score on one task of one model; replicas hold the estimate first."""

    model: str
    task: str
    wrong_answer: str
    method: str
    cost: float
    spearman: np.ndarray
    auroc: np.ndarray


def main() -> None:
    arguments = _arguments()
    found: list[Found] = []
    curves: list[dict[str, object]] = []
    for name in arguments.models:
        loaded = models.load(name, "cpu", "float32")
        for task in track(arguments.tasks, description=name):
            some, more = _study(loaded, Path(name).name, task, arguments)
            found += some
            curves += more
    rows = [*_rows(found, by_model=True), *_rows(found, by_model=False)]
    _print(rows, len(arguments.models))
    if arguments.json:
        settings = {name: value for name, value in vars(arguments).items() if name not in ("json", "embedding_model")}
        record = {
            "versions": versions(),
            "settings": settings | {"models": [Path(name).name for name in arguments.models]},
            "figures": rows,
            "faithfulness": curves,
        }
        Path(arguments.json).write_text(json.dumps(record) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Scores and wrong answers against measured effects.")
    parser.add_argument("--models", nargs="+", default=["reference"], help="reference, or folders with other seeds")
    parser.add_argument("--tasks", nargs="+", default=list(LANGUAGE_TASKS))
    parser.add_argument("--prompts", type=int, default=512, help="prompts of each task")
    parser.add_argument("--pairs", type=int, default=128, help="prompts on which effects are measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--embedding-model", help="sentence-embedding model for `semantic`; left out without one")
    parser.add_argument("--json", help="file for all figures")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    return arguments


def _study(
    loaded: LoadedModel, model: str, task: str, arguments: argparse.Namespace
) -> tuple[list[Found], list[dict[str, object]]]:
    encoded = _prompts(loaded, task, arguments)
    pairs = pair_up(encoded[: arguments.pairs], 64)
    places = points(loaded.sites, loaded.components, "node")
    metric = metric_for(tasks.get(task).metric, pairs.encoded, loaded.device)
    effects = measure_effects(loaded, pairs, places, metric, ("resample",))
    attributions = attribute(loaded, pairs, places, metric, with_direct=True)
    rng = np.random.default_rng(arguments.seed)
    weights = poisson_weights(len(pairs.encoded), rng)
    gap = means(weights, effects.clean - effects.counterfactual)
    truth = measured_truth("resample", means(weights, effects.drops["resample"]), gap)
    scores = [
        Score(name, "", np.abs(means(weights, attributions[name].values)), attributions[name].cost)
        for name in BASELINES
    ]
    nodes = NodeMap.of(loaded.components)
    chosen = [index for index, node in enumerate(nodes.nodes) if node.is_circuit_part]
    assert [nodes.nodes[index].name for index in chosen] == [place.name for place in places]
    prompt_weights = poisson_weights(len(encoded), rng)
    for centering in CENTERINGS:
        tables = _norms(loaded, encoded, centering, arguments)
        scores += _gradient_scores(tables, nodes, chosen, prompt_weights, centering)
    runner = CircuitRunner(loaded, pairs, places, metric, weights)
    shown = [score for score in scores if _is_compared(score)]
    curves = faithfulness_curves(runner, shown)
    described = [{"model": model, "task": task, **row} for row in curves.rows if row["size"] == 0.2] + [
        {"model": model, "task": task, **row} for row in curves.figures
    ]
    return [_held_against(truth, score, model, task) for score in scores], described


def _is_compared(score: Score) -> bool:
    compared = ("attribution_patching", "attribution_patching_ig", "template: writing norm", "position: norm")
    return score.method in compared and score.wrong_answer in ("", "inverse_logits", "logit_difference")


def _prompts(loaded: LoadedModel, task: str, arguments: argparse.Namespace) -> list[EncodedPrompt]:
    prompts = tasks.draw(task, loaded.tokenizer, arguments.prompts, arguments.seed)
    if arguments.embedding_model:
        prompts = with_farthest(prompts, load_embedder(arguments.embedding_model))
    return encode(prompts, loaded.tokenizer, loaded.context)


def _norms(
    loaded: LoadedModel, encoded: Sequence[EncodedPrompt], centering: str, arguments: argparse.Namespace
) -> ShardTables:
    definitions = [
        name for name in wrong_answers.names() if arguments.embedding_model or not wrong_answers.get(name).needs_meaning
    ]
    calibration = Engine(loaded, wrong_answers=definitions, batch_size=64).calibrate(encoded, centering)
    return Engine(loaded, wrong_answers=definitions, batch_size=64, calibration=calibration).compute(encoded)


def _gradient_scores(
    tables: ShardTables, nodes: NodeMap, chosen: list[int], weights: np.ndarray, centering: str
) -> Iterator[Score]:
    for key in keys(tables.norms):
        parts: dict[str, np.ndarray] = {}
        kept: dict[str, np.ndarray] = {}
        for values in finite_values(rows_of(tables.norms, key), nodes):
            parts[values.statistic] = np.concatenate(
                [parts.get(values.statistic, np.zeros((len(nodes.by_node), 0))), values.values[: len(nodes.by_node)]], 1
            )
            kept[values.statistic] = np.concatenate([kept.get(values.statistic, np.zeros(0, int)), values.rows])
        cost = 4.0 if wrong_answers.get(key.wrong_answer).reads_twin else 2.0
        for method, statistic, per_prompt in _per_prompt(parts, nodes, tables, centering):
            table = per_prompt[chosen].T
            drawn = weights[:, kept[statistic]]
            if method.endswith("root mean square"):
                replicas = np.sqrt(means(drawn, table**2))
            else:
                replicas = np.abs(means(drawn, table))
            yield Score(method, key.wrong_answer, replicas, cost)
        if centering == CENTERINGS[0]:
            signal = np.sqrt(np.maximum(_signal(tables, key, nodes), 0))[chosen]
            yield Score("signal", key.wrong_answer, np.tile(signal, (len(weights), 1)), cost)


def _per_prompt(
    parts: dict[str, np.ndarray], nodes: NodeMap, tables: ShardTables, centering: str
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Name, statistic and value per node and prompt of every score that is a mean over prompts."""
    statistics = {f"{centering}: ": "centered_grad_norm"}
    if centering == CENTERINGS[0]:
        statistics["raw: "] = "grad_norm"
    for label, statistic in statistics.items():
        values = parts[statistic]
        yield label + "norm", statistic, nodes.norms(values)
        yield label + "writing norm", statistic, values[nodes.writers]
        for method, names in (("reading norm", ("v", "in")), ("query-key norm", ("q", "k", "in"))):
            inside = np.array([name in names for name in _part_names(tables, nodes)])
            yield label + method, statistic, nodes.norms(values * inside[:, None])
    if centering == CENTERINGS[0]:
        signed = parts["taylor_signed"][nodes.writers]
        yield "Taylor, mean of sizes", "taylor", np.abs(signed)
        yield "Taylor, size of the mean", "taylor", signed
        yield "Taylor, root mean square", "taylor", signed


def _part_names(tables: ShardTables, nodes: NodeMap) -> list[str]:
    names = tables.coherence["component"].to_pylist()[: len(nodes.by_node)]
    return [name.rpartition(".")[2] for name in names]


def _signal(tables: ShardTables, key: Key, nodes: NodeMap) -> np.ndarray:
    rows = rows_of(tables.coherence, key)
    n, sum_sq, sq_sum = (
        rows[name].to_numpy().astype(float).reshape(-1, len(nodes.by_node)) for name in ("n", "sum_sq", "sq_sum")
    )
    return nodes.sums((sum_sq - sq_sum).sum(0) / (n * (n - 1)).sum(0))


def _held_against(truth: Truth, score: Score, model: str, task: str) -> Found:
    assert truth.effects is not None
    return Found(
        model,
        task,
        score.wrong_answer or "",
        score.method,
        score.cost,
        spearman(score.replicas, truth.effects),
        auroc(score.replicas, truth.members),
    )


def _rows(found: list[Found], *, by_model: bool) -> Iterator[dict[str, object]]:
    """Per task, or averaged over tasks; per model, or averaged over models."""
    groups: defaultdict[tuple[str, str, str, str], list[Found]] = defaultdict(list)
    for one in found:
        model = one.model if by_model else "all"
        for task in (one.task, "all"):
            groups[model, task, one.wrong_answer, one.method].append(one)
    for (model, task, definition, method), members in groups.items():
        row: dict[str, object] = {"model": model, "task": task, "wrong_answer": definition, "method": method}
        row["cost"] = members[0].cost
        for figure in ("spearman", "auroc"):
            replicas = np.mean([getattr(member, figure) for member in members], axis=0)
            low, high = interval(replicas, -1.0, 1.0)
            row |= {figure: round(float(replicas[0]), 4), f"{figure}_ci": [round(low, 4), round(high, 4)]}
        yield row


def _print(rows: list[dict[str, object]], n_models: int) -> None:
    console = Console(width=150)
    table = Table(title=f"mean over tasks and {n_models} models, heads and MLPs against resample effects")
    for heading in ("score", "wrong answer", "Spearman", "AUROC", "passes"):
        table.add_column(heading)
    number = partial("{:.2f} [{:.2f}, {:.2f}]".format)
    together = [row for row in rows if row["model"] == "all" and row["task"] == "all"]
    for row in sorted(together, key=lambda row: -float(str(row["spearman"]))):
        figures = [number(row[name], *row[f"{name}_ci"]) for name in ("spearman", "auroc")]  # pyright: ignore
        table.add_row(str(row["method"]), str(row["wrong_answer"]), *figures, f"{row['cost']:g}")
    console.print(table)


if __name__ == "__main__":
    main()
