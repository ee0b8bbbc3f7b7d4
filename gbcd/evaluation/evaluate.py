"""Hold the scores of a finished study against what components do, measured by ablation, and against other methods.

    results folder -> pairs of prompt and counterfactual -> effects -> truth
                   -> replicas of every score            -> figures with intervals, faithfulness, circuit

Scores are means over all prompts of the study; effects and baselines are measured on a sample of them, which is a
random draw because the stored prompts are shuffled. Prompts without a counterfactual of their own length cannot be
patched: they are counted and named. A task left with fewer than two is named and passed over. Compiled programs, whose
prompts have no counterfactuals, are measured by mean and zero ablation, and have no attribution to compare with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float

from gbcd import wrong_answers
from gbcd.analysis.nodes import NodeMap
from gbcd.analysis.ranking import METHODS
from gbcd.analysis.shard_values import Key
from gbcd.errors import BadInput, listed
from gbcd.evaluation.aggregation import first_prompts
from gbcd.evaluation.pairs import Pairs, alone, pair_up
from gbcd.evaluation.places import Level
from gbcd.evaluation.recovery import Score
from gbcd.evaluation.replicas import poisson_weights, score_replicas
from gbcd.evaluation.steps import Watch, unwatched
from gbcd.evaluation.tables import (
    AGGREGATION,
    AGGREGATION_FILE,
    EFFECTS,
    EFFECTS_FILE,
    EVALUATION,
    EVALUATION_FILE,
    FAITHFULNESS,
    FAITHFULNESS_FILE,
)
from gbcd.evaluation.task_evaluation import Case, TaskEvaluation, evaluate_task
from gbcd.models import load as models
from gbcd.models.load import LoadedModel
from gbcd.printing import counted
from gbcd.run.commits import committed_ids
from gbcd.run.inputs import Inputs
from gbcd.run.results import encoded as as_parquet
from gbcd.run.results import shard_tables, summary
from gbcd.run.shards import Plan, read_plan
from gbcd.run.store import Store

_FILES = (EVALUATION_FILE, EFFECTS_FILE, FAITHFULNESS_FILE, AGGREGATION_FILE)


class Evaluation(NamedTuple):
    """What an evaluation came to; the tables are also in the results folder.

    Attributes:
        figures: table `EVALUATION`.
        effects: table `EFFECTS`.
        faithfulness: table `FAITHFULNESS`.
        aggregation: table `AGGREGATION`.
        notes: what could not be evaluated, by name.
    """

    figures: pl.DataFrame
    effects: pl.DataFrame
    faithfulness: pl.DataFrame
    aggregation: pl.DataFrame
    notes: tuple[str, ...]


def evaluate(
    out: str, n_pairs: int = 128, level: Level = "node", batch_size: int = 32, watch: Watch = unwatched
) -> Evaluation:
    """Evaluate the study in `out` and write tables and circuits there.

    Args:
        out: a finished study.
        n_pairs: prompts per task on which effects are measured.
        level: whether heads and MLPs are ablated, or their parts.
        batch_size: prompts per forward pass.
        watch: told of every step.

    Raises:
        BadInput: there is no study, it is not complete, its model is not to be had or has other weights now, fewer
            than two pairs were asked for, or no task has two prompts that can be patched.
    """
    if n_pairs < 2:
        raise BadInput(f"effects cannot be averaged over {n_pairs} prompts; give at least 2")
    store = Store(out)
    plan = read_plan(store)
    _refuse_incomplete(store, plan)
    loaded = _load(store, plan)
    inputs, pairs, notes = Inputs(store, plan), dict[str, Pairs](), list[str]()
    for task in plan.study.tasks:
        batched = alone if loaded.spec.reads_every_token else pair_up
        pairs[task] = batched(inputs.sample(task, n_pairs), batch_size)
        if pairs[task].refused:
            notes.append(_refusals(task, pairs[task].refused))
    usable = [task for task in plan.study.tasks if len(pairs[task].encoded) >= 2]
    notes += [
        f"{task}: not evaluated, since it takes 2 prompts that can be patched, and there are {len(some.encoded)}"
        for task, some in pairs.items()
        if task not in usable
    ]
    if not usable:
        raise BadInput(
            "no task has two prompts with a counterfactual of equal length, which effects are measured by:\n"
            + "\n".join(notes)
            + "\nGive prompts one: `counterfactual` in Filled or in a line of a prompt file."
        )
    watch("reading the scores of the study", 0, 1)
    cases = _cases(store, plan, loaded, {task: pairs[task] for task in usable}, level)
    measured = [evaluate_task(loaded, case, level, plan.study.seed, watch) for case in cases]
    evaluation = _tables(measured, notes)
    for path, table in zip(_FILES, evaluation[:4], strict=True):
        store.write(path, as_parquet(table.to_arrow()))
    for path, circuit in ((path, circuit) for found in measured for path, circuit in found.circuits.items()):
        store.write(path, circuit.to_json())
    return evaluation


def _refusals(task: str, refused: Sequence[str]) -> str:
    """Who cannot be patched, and why: one line where all have the same reason."""
    reasons = Counter(text.partition(": ")[2] for text in refused)
    if len(reasons) == 1:
        first = refused[0] if len(refused) == 1 else f"the first is {refused[0]}"
        return f"{task}: {counted(len(refused), 'prompt')} cannot be patched, {first}"
    return f"{task}: {counted(len(refused), 'prompt')} cannot be patched:\n{listed(refused)}"


def _refuse_incomplete(store: Store, plan: Plan) -> None:
    missing = len(plan.shards) - len(committed_ids(store))
    if missing:
        raise BadInput(
            f"{store.location!r} is not complete: {missing} of {len(plan.shards)} shards are missing. "
            "The command that started the study finishes it."
        )


def _load(store: Store, plan: Plan) -> LoadedModel:
    loaded = models.load(plan.study.model, "auto", plan.study.dtype)
    if loaded.sha256 != plan.identity.hashes["model"]:
        raise BadInput(
            f"{store.location!r} is of another model: {plan.study.model!r} had weights "
            f"{plan.identity.hashes['model'][:12]} and has {loaded.sha256[:12]} now"
        )
    return loaded


def _cases(store: Store, plan: Plan, loaded: LoadedModel, pairs: dict[str, Pairs], level: Level) -> list[Case]:
    everything = loaded.components if level == "part" else NodeMap.of(loaded.components).nodes
    components = [component for component in everything if component.is_circuit_part]
    names = [component.name for component in components]
    replicas = score_replicas(shard_tables(store), loaded.components, names, plan.study.seed)
    values = first_prompts(shard_tables(store), loaded.components, names)
    rng = np.random.default_rng(plan.study.seed)
    ranked = summary(store.location).select("task", "wrong_answer", "score_name").unique().collect()
    return [
        Case(
            task=task,
            pairs=some,
            components=components,
            weights=poisson_weights(len(some.encoded), rng),
            scores=_gradient_scores(replicas, task),
            per_prompt={
                key.wrong_answer: {method: group[name] for method, name in METHODS.items() if name in group}
                for key, group in values.items()
                if key.task == task
            },
            ranked_by=dict(ranked.filter(task=task).select("wrong_answer", "score_name").iter_rows()),
        )
        for task, some in pairs.items()
    ]


def _gradient_scores(replicas: dict[Key, dict[str, Float[np.ndarray, "replicas columns"]]], task: str) -> list[Score]:
    return [
        # One forward and one backward pass, over the prompt and perhaps its twin.
        Score(
            method, key.wrong_answer, statistics[name], 4.0 if wrong_answers.get(key.wrong_answer).reads_twin else 2.0
        )
        for key, statistics in replicas.items()
        if key.task == task
        for method, name in METHODS.items()
        if name in statistics
    ]


def _tables(measured: Sequence[TaskEvaluation], notes: list[str]) -> Evaluation:
    return Evaluation(
        pl.from_dicts([row for found in measured for row in found.figures], schema=EVALUATION),
        pl.from_dicts([row for found in measured for row in found.effects], schema=EFFECTS),
        pl.from_dicts([row for found in measured for row in found.faithfulness], schema=FAITHFULNESS),
        pl.from_dicts([row for found in measured for row in found.aggregation], schema=AGGREGATION),
        tuple(notes),
    )
