"""Hold the scores of a finished study against what components do when they are ablated, and against other methods.

    results folder -> plan -> effects and baselines (shards) -> which circuits -> circuits (shards) -> tables

Both stages run on the executor, so an evaluation that was interrupted goes on where it was. Scores are means over all
prompts of the study; effects and baselines are measured on a sample of them, which is a random draw because the stored
prompts are shuffled. Prompts with neither a counterfactual of their own length nor a partner cannot be patched: they
are counted and named. Compiled programs, which have no counterfactuals, are measured by mean and zero ablation.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import polars as pl
from rich.console import Console

from gbcd import wrong_answers
from gbcd.analysis.reduce import reduce
from gbcd.errors import BadInput, Incomplete
from gbcd.evaluation import tables
from gbcd.evaluation.circuit_sets import Circuits, EdgeTable, store_circuits
from gbcd.evaluation.curves import Cut, curves, cuts
from gbcd.evaluation.evaluation_plan import (
    EvaluationPlan,
    Request,
    evaluation_folder,
    read_evaluation_plan,
    write_evaluation_plan,
)
from gbcd.evaluation.measured import (
    Measured,
    baseline_scores,
    drop_rows,
    edge_config,
    edge_scores,
    effect_rows,
    groups,
    ranking_score,
    read_measured,
    read_stage,
    study_scores,
    truths,
)  # fmt: skip
from gbcd.evaluation.patching import Ablation
from gbcd.evaluation.places import Level
from gbcd.evaluation.planning import planned_evaluation
from gbcd.evaluation.recovery import Score, recovery_rows
from gbcd.evaluation.work import EvaluationWork, circuit_components, load_model
from gbcd.models.load import LoadedModel
from gbcd.run.commits import committed_ids
from gbcd.run.executor import Team, absolute, execute
from gbcd.run.own_definitions import DefinitionFile, import_definitions
from gbcd.run.progress import ProgressDisplay
from gbcd.run.results import SUMMARY_FILE, encoded
from gbcd.run.settling import settled_device
from gbcd.run.shards import Plan, read_plan
from gbcd.run.store import Store
from gbcd.run.work import Workers
from gbcd.study import AskedDevice, Compute


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
    """A task with its scores and the circuits that they give; `table` is of its edges, where they are scored."""

    measured: Measured
    scores: list[Score]
    ranking: Score | None
    table: EdgeTable | None
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
    device: AskedDevice = "auto",
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
        budget: minutes, from this call on; as many pairs as fit, up to `n_pairs`.
        workers: Ray workers; 0 computes in this process.
        device: `auto` is a GPU where workers can have one, whatever the study was computed on.
        console: where progress is shown.
        definitions: files with scores, tasks and wrong answers of one's own.

    Raises:
        BadInput: there is no study, it is not complete, its model or the device is not available, its model has other
            weights now, too few pairs were asked for, the budget is too small, or no task has two prompts that can be
            patched.
        Incomplete: a block of pairs failed again and again, or workers or storage did; the same call goes on.
    """
    began = time.monotonic()
    if n_pairs < 2:
        raise BadInput(f"effects are means over 2 prompts or more, not {n_pairs}")
    on = settled_device(Compute(device=device, workers=workers))
    request = Request(pairs=n_pairs, budget=budget, ablations=tuple(ablations), top=top, level=level, device=on)
    store, files = Store(out), tuple(definitions)
    import_definitions(files)
    plan = read_plan(store)
    wrong_answers.refuse_unknown(plan.study.wrong_answers)
    _refuse_incomplete(store, plan)
    compute = plan.study.compute.model_copy(update={"workers": workers})
    if not store.exists(SUMMARY_FILE):
        reduce(out)
    folder = evaluation_folder(request, plan, files)
    loaded = load_model(store, plan, on, compute.gpu_share)
    planned = read_evaluation_plan(store, folder)
    if planned is None:
        planned = write_evaluation_plan(store, folder, planned_evaluation(store, plan, loaded, request, workers, began))
    build = partial(
        EvaluationWork, absolute(out), folder, files, compute.threads if workers else None, compute.gpu_share
    )
    who = Workers(workers, compute.threads, compute.gpus_per_worker if on == "cuda" else 0.0)
    with Team(out, build, who) as team, ProgressDisplay(console or Console(quiet=True)) as display:
        _finished(execute(team, [planned.effects_stage(folder)], display))
        judged = [_judged(store, plan, loaded, folder, planned, task) for task in planned.tasks]
        store_circuits(store, folder, {one.measured.task: one.circuits for one in judged})
        n_runs = {one.measured.task: one.circuits.n_runs for one in judged}
        _finished(execute(team, [planned.circuits_stage(folder, n_runs)], display))
    return _written(store, folder, planned, loaded, judged)


def _judged(store: Store, plan: Plan, loaded: LoadedModel, folder: str, planned: EvaluationPlan, task: str) -> _Judged:
    components = circuit_components(loaded, planned.request.level)
    measured = read_measured(store, folder, planned, task, components, plan.study.seed)
    scores = study_scores(store, measured)
    ranking = ranking_score(store, measured, scores)
    scores += baseline_scores(measured)
    circuits = Circuits()
    # the first circuit of nodes is the empty one, which faithfulness counts from
    circuits.add("nodes", [])
    cfg = edge_config(loaded) if planned.tasks[task].has_edges else None
    table = None if cfg is None else EdgeTable(cfg)
    of_edges = [] if table is None else edge_scores(store, measured, scores, ranking, table)
    return _Judged(measured, scores, ranking, table, circuits, cuts(circuits, scores, of_edges, table))


def _written(
    store: Store, folder: str, planned: EvaluationPlan, loaded: LoadedModel, judged: Sequence[_Judged]
) -> Evaluation:
    rows: dict[str, list[dict[str, Any]]] = {file: [] for file in tables.TABLES}
    for measured, scores, ranking, _, circuits, found in judged:
        known = truths(measured, loaded.name, planned.request.level)
        figures = recovery_rows(scores, ranking, known, groups(measured.components), measured.draws)
        rows_of_runs = read_stage(store, folder, "circuits", planned, measured.task)["circuits"]
        drawn = curves(measured.draws, rows_of_runs, found, circuits, ranking and ranking.of)
        shared = {"task": measured.task, "n_pairs": len(measured.rows), "n_components": len(measured.components)}
        by_file = drawn | {
            tables.EVALUATION_FILE: [*figures, *drawn[tables.EVALUATION_FILE]],
            tables.EFFECTS_FILE: list(effect_rows(measured)),
        }
        for file, some in by_file.items():
            rows[file] += [shared | row for row in some]
        store.write(tables.drops_file(measured.task), encoded(drop_rows(measured).to_arrow()))
    written = {file: pl.from_dicts(rows[file], schema=schema) for file, schema in tables.TABLES.items()}
    for file, table in written.items():
        store.write(file, encoded(table.to_arrow()))
    if of_edges := _edge_scores(judged):
        store.write(tables.EDGE_SCORES_FILE, encoded(pl.concat(of_edges).to_arrow()))
    figures, effects, faithfulness, edge_faithfulness = written.values()
    return Evaluation(figures, effects, faithfulness, edge_faithfulness, planned.notes)


def _edge_scores(judged: Sequence[_Judged]) -> list[pl.DataFrame]:
    return [
        one.table.frame.select(
            pl.lit(one.measured.task).alias("task"),
            pl.lit(method).alias("method"),
            pl.all(),
            pl.Series("score", values),
        )
        for one in judged
        for method, values in one.measured.edges.items()
        if one.table is not None
    ]


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
