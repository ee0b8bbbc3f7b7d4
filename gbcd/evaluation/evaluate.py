"""Hold the scores of a finished study against what components do when they are ablated, and against other methods.

    results folder -> plan -> effects and baselines (shards) -> which circuits -> circuits (shards) -> tables

Both stages run on the executor, so an evaluation that was interrupted goes on where it was. Scores are means over all
prompts of the study; effects and baselines are measured on a sample of them, which is a random draw because the stored
prompts are shuffled. Prompts with neither a counterfactual of their own length nor a partner cannot be patched: they
are counted and named. Compiled programs, which have no counterfactuals, are measured by mean and zero ablation.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from rich.console import Console

from gbcd import tasks
from gbcd.analysis.reduce import reduce
from gbcd.engine.engine import packed_for
from gbcd.errors import BadInput, Incomplete
from gbcd.evaluation import tables
from gbcd.evaluation.circuit_sets import Circuits, EdgeTable, store_circuits
from gbcd.evaluation.evaluation_plan import (
    PAIRS_PER_BLOCK,
    EvaluationPlan,
    Request,
    TaskPlan,
    evaluation_folder,
    read_evaluation_plan,
    stage_folder,
    write_evaluation_plan,
)
from gbcd.evaluation.measured import (
    Curves,
    Cut,
    Measured,
    baseline_scores,
    curves,
    cuts,
    drop_rows,
    edge_config,
    edge_scores,
    effect_rows,
    figure_rows,
    ranking_score,
    read_measured,
    study_scores,
    truths,
)
from gbcd.evaluation.metrics import MEAN_SQUARED_ERROR
from gbcd.evaluation.node_sample import sampled
from gbcd.evaluation.pairs import pair_up
from gbcd.evaluation.patching import Ablation
from gbcd.evaluation.places import Level
from gbcd.evaluation.recovery import Score
from gbcd.evaluation.work import EvaluationWork, circuit_components, load_model
from gbcd.models.load import LoadedModel
from gbcd.prompting.prompt_lines import TASK
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.run.commits import committed_ids, read_commits, read_table
from gbcd.run.executor import Workers, absolute, execute
from gbcd.run.inputs import Inputs
from gbcd.run.own_definitions import DefinitionFile, import_definitions
from gbcd.run.progress import ProgressDisplay
from gbcd.run.results import SUMMARY_FILE, encoded, summary
from gbcd.run.shards import Plan, read_plan
from gbcd.run.store import Store


class Evaluation(NamedTuple):
    """What an evaluation came to; the tables are also in the results folder.

    Attributes:
        figures: table `EVALUATION`.
        effects: table `EFFECTS`.
        faithfulness: table `FAITHFULNESS`.
        edge_faithfulness: table `EDGE_FAITHFULNESS`.
        notes: what could not be evaluated, by name.
    """

    figures: pl.DataFrame
    effects: pl.DataFrame
    faithfulness: pl.DataFrame
    edge_faithfulness: pl.DataFrame
    notes: tuple[str, ...]


class _Judged(NamedTuple):
    """A task with its scores and the circuits that they give."""

    measured: Measured
    scores: list[Score]
    ranking: Score | None
    circuits: Circuits
    cuts: list[Cut]


def evaluate(
    out: str,
    n_pairs: int = 128,
    *,
    level: Level = "node",
    ablations: Sequence[Ablation] = ("resample",),
    top: int | None = None,
    budget: float | None = None,
    workers: int = 0,
    console: Console | None = None,
    definitions: Sequence[DefinitionFile] = (),
) -> Evaluation:
    """Evaluate the study in `out`, or go on with an evaluation that was interrupted, and write the tables there.

    Args:
        out: a finished study.
        n_pairs: prompts per task on which effects are measured.
        level: whether heads and MLPs are ablated, or their parts.
        ablations: how: `resample`, `mean`, `zero`.
        top: ablate only so many of the best by the study's score, and as many of the others, which stand for all.
        budget: minutes; as many pairs as fit, up to `n_pairs`.
        workers: Ray workers; 0 computes in this process.
        console: where progress is shown.
        definitions: files with scores, tasks and wrong answers of one's own.

    Raises:
        BadInput: there is no study, it is not complete, its model is not available or has other weights now, too few
            pairs were asked for, the budget is too small, or no task has two prompts that can be patched.
        Incomplete: a block of pairs failed again and again, or workers or storage did; the same call goes on.
    """
    if n_pairs < 2:
        raise BadInput(f"effects cannot be averaged over {n_pairs} prompts; give at least 2")
    request = Request(pairs=n_pairs, budget=budget, ablations=tuple(ablations), top=top, level=level)
    store, files = Store(out), tuple(definitions)
    import_definitions(files)
    plan = read_plan(store)
    _refuse_incomplete(store, plan)
    gpus = 1.0 if plan.study.device.startswith("cuda") else 0.0
    team = Workers(workers, plan.study.threads, gpus)
    if not store.exists(SUMMARY_FILE):
        reduce(out)
    folder = evaluation_folder(request, plan, files)
    loaded = load_model(store, plan)
    planned = read_evaluation_plan(store, folder)
    if planned is None:
        planned = write_evaluation_plan(store, folder, _planned(store, plan, loaded, request, workers))
    threads = team.threads if workers else None
    build = partial(EvaluationWork, absolute(out), folder, files, threads)
    with _workplace(team), ProgressDisplay(console or Console(quiet=True)) as display:
        _finished(execute(out, [planned.effects_stage(folder)], build, team, display))
        judged = [_judged(store, plan, loaded, folder, planned, task) for task in planned.tasks]
        store_circuits(store, folder, {one.measured.task: one.circuits for one in judged})
        n_runs = {one.measured.task: one.circuits.n_runs for one in judged}
        _finished(execute(out, [planned.circuits_stage(folder, n_runs)], build, team, display))
    return _written(store, folder, planned, loaded, judged)


def _planned(store: Store, plan: Plan, loaded: LoadedModel, request: Request, workers: int) -> EvaluationPlan:
    inputs, found, notes = Inputs(store, plan), dict[str, TaskPlan](), list[str]()
    for task in plan.study.tasks:
        drawn = inputs.sample(task, request.pairs)
        pairs = pair_up(drawn, not loaded.spec.reads_every_token)
        if pairs.refused:
            notes.append(pairs.refusals(task))
        if len(pairs.usable) < 2:
            notes.append(
                f"{task}: not evaluated, since it takes 2 prompts that can be patched, and there are "
                f"{len(pairs.usable)}"
            )
            continue
        found[task] = TaskPlan(
            metric=metric_name(task, pairs.usable),
            n_drawn=len(drawn),
            n_pairs=len(pairs.usable),
            n_refused=len(pairs.refused),
            ablations=_ablations(request, pairs.usable),
            nodes=_nodes(store, task, loaded, request, plan.study.seed),
            has_edges=request.level == "node" and edge_config(loaded) is not None and not loaded.spec.reads_every_token,
        )
    if not found:
        raise BadInput(
            "no task has two prompts with a counterfactual of equal length, or a partner, to measure effects by:\n"
            + "\n".join(notes)
            + "\nGive prompts one: `counterfactual` in Filled or in a line of a prompt file; or allow partners."
        )
    if request.budget is not None:
        found = _within(request.budget, found, inputs, loaded, workers)
    return EvaluationPlan(request=request, tasks=found, notes=tuple(notes))


def _ablations(request: Request, prompts: Sequence[EncodedPrompt]) -> tuple[Ablation, ...]:
    """Those asked for; where prompts have nothing to be resampled from, the mean takes its place."""
    if prompts[0].reference_ids is not None:
        return request.ablations
    return tuple(dict.fromkeys("mean" if one == "resample" else one for one in request.ablations))


def _nodes(store: Store, task: str, loaded: LoadedModel, request: Request, seed: int) -> dict[str, int]:
    names = [component.name for component in circuit_components(loaded, request.level)]
    rows = summary(store.location).filter(task=task, level=request.level).collect()
    scores = dict(
        rows.filter(pl.col("wrong_answer") == rows["wrong_answer"][0]).select("component", "score").iter_rows()
    )
    return sampled(names, np.array([scores[name] or 0.0 for name in names]), request.top, seed)


def metric_name(task: str, prompts: Sequence[EncodedPrompt]) -> str:
    """The metric that effects of a task are measured by."""
    if task != TASK:
        return tasks.get(task).metric
    if prompts[0].outputs is not None:
        return MEAN_SQUARED_ERROR
    return "logit_difference" if all(prompt.wrong_ids for prompt in prompts) else "negative_log_probability"


def _within(
    minutes: float, found: Mapping[str, TaskPlan], inputs: Inputs, loaded: LoadedModel, workers: int
) -> dict[str, TaskPlan]:
    """As many pairs of each task as fit, by the time that a forward pass takes.

    Raises:
        BadInput: not even two pairs do.
    """
    n_layers, seconds = loaded.spec.n_layers, 0.0
    for task, planned in found.items():
        layers = [int(name.split(".")[0][1:]) for name in planned.nodes]
        # nodes, from their block on; baselines, and circuits, which take about as long as the effects of all nodes
        passes = sum(n_layers - layer for layer in layers) / n_layers * len(planned.ablations) * 2 + 40
        prompts = inputs.sample(task, PAIRS_PER_BLOCK)
        packed = packed_for(loaded, [(prompt.ids,) for prompt in prompts])
        loaded.decoder.run(packed)
        started = time.perf_counter()
        loaded.decoder.run(packed)
        seconds += passes * (time.perf_counter() - started) / len(prompts)
    n_pairs = int(60 * minutes * max(1, workers) / seconds)
    if n_pairs < 2:
        raise BadInput(
            f"a budget of {minutes:g} minutes is too small: two pairs of every task take about {2 * seconds / 60:.1f}"
        )
    return {
        task: planned.model_copy(update={"n_pairs": min(planned.n_pairs, n_pairs)}) for task, planned in found.items()
    }


def _judged(store: Store, plan: Plan, loaded: LoadedModel, folder: str, planned: EvaluationPlan, task: str) -> _Judged:
    shards = [shard for shard, block in enumerate(planned.blocks()) if block.task == task]
    components = circuit_components(loaded, planned.request.level)
    effects = stage_folder(folder, "effects")
    measured = read_measured(store, effects, task, planned.tasks[task], shards, components, plan.study.seed)
    scores = study_scores(store, measured)
    ranking = ranking_score(store, measured, scores)
    scores += baseline_scores(measured)
    circuits = Circuits()
    # the first circuit of nodes is the empty one, which faithfulness counts from
    circuits.add("nodes", [])
    cfg = edge_config(loaded) if planned.tasks[task].has_edges else None
    table = None if cfg is None else EdgeTable(cfg)
    of_edges = [] if table is None else edge_scores(store, measured, scores, ranking, table)
    return _Judged(measured, scores, ranking, circuits, cuts(circuits, scores, of_edges, table))


def _written(
    store: Store, folder: str, planned: EvaluationPlan, loaded: LoadedModel, judged: Sequence[_Judged]
) -> Evaluation:
    rows: dict[str, list[dict[str, Any]]] = {"figures": [], "effects": [], "nodes": [], "edges": [], "scores": []}
    below = store.below(stage_folder(folder, "circuits"))
    for one in judged:
        measured = one.measured
        shards = [shard for shard, block in enumerate(planned.blocks()) if block.task == measured.task]
        commits = read_commits(below, shards)
        found = pl.concat([pl.DataFrame(read_table(below, commit.files["circuits"])) for commit in commits])
        known = truths(measured, loaded.name, planned.request.level)
        drawn: Curves = curves(measured, found, one.cuts, one.circuits, one.ranking)
        shared = {"task": measured.task, "n_pairs": len(measured.rows)}
        figures = [*figure_rows(measured, one.scores, one.ranking, known), *drawn.figures]
        rows["figures"] += [{**shared, "n_components": len(measured.components), **row} for row in figures]
        rows["effects"] += [{**shared, **row} for row in effect_rows(measured, loaded.spec.n_layers)]
        rows["nodes"] += [{"task": measured.task, **row} for row in drawn.nodes]
        rows["edges"] += [{"task": measured.task, **row} for row in drawn.edges]
        store.write(tables.drops_file(measured.task), encoded(drop_rows(measured).to_arrow()))
    evaluation = Evaluation(
        pl.from_dicts(rows["figures"], schema=tables.EVALUATION),
        pl.from_dicts(rows["effects"], schema=tables.EFFECTS),
        pl.from_dicts(rows["nodes"], schema=tables.FAITHFULNESS),
        pl.from_dicts(rows["edges"], schema=tables.EDGE_FAITHFULNESS),
        planned.notes,
    )
    paths = (tables.EVALUATION_FILE, tables.EFFECTS_FILE, tables.FAITHFULNESS_FILE, tables.EDGE_FAITHFULNESS_FILE)
    for path, table in zip(paths, evaluation[:4], strict=True):
        store.write(path, encoded(table.to_arrow()))
    if (scores := _edge_scores(loaded, judged)) is not None:
        store.write(tables.EDGE_SCORES_FILE, encoded(scores.to_arrow()))
    return evaluation


def _edge_scores(loaded: LoadedModel, judged: Sequence[_Judged]) -> pl.DataFrame | None:
    cfg = edge_config(loaded)
    if cfg is None or not any(one.measured.edges for one in judged):
        return None
    edges = EdgeTable(cfg).frame
    return pl.concat(
        edges.select(
            pl.lit(one.measured.task).alias("task"),
            pl.lit(method).alias("method"),
            "source",
            "target",
            pl.Series("score", values),
        )
        for one in judged
        for method, values in one.measured.edges.items()
    )


@contextmanager
def _workplace(workers: Workers) -> Generator[None]:
    """Ray, for as long as the evaluation lasts."""
    if not workers.n:
        yield
        return
    from gbcd.run.ray_pool import connected

    with connected(workers.n * workers.threads):
        yield


def _finished(given_up: Sequence[Any]) -> None:
    if given_up:
        raise Incomplete(f"the evaluation is not complete: {given_up[0].message}; the same command tries again")


def _refuse_incomplete(store: Store, plan: Plan) -> None:
    missing = len(plan.shards) - len(committed_ids(store))
    if missing:
        raise BadInput(
            f"{store.location!r} is not complete: {missing} of {len(plan.shards)} shards are missing. "
            "The command that started the study finishes it."
        )
