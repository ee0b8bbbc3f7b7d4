"""From the shards of an evaluation to its tables: effects, scores against them, curves of circuits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Bool, Float

from gbcd import tasks, wrong_answers
from gbcd.analysis.circuits import Config
from gbcd.analysis.nodes import NodeMap
from gbcd.analysis.ranking import METHODS
from gbcd.analysis.stored import read_template_sums
from gbcd.component import Component
from gbcd.evaluation.baselines import every_baseline
from gbcd.evaluation.circuit_sets import EdgeScore, EdgeTable
from gbcd.evaluation.evaluation_plan import EvaluationPlan, StageName, TaskPlan, stage_folder
from gbcd.evaluation.recovery import Method, Score, Truth, measured_truth
from gbcd.evaluation.resampling import Draws
from gbcd.models.load import LoadedModel
from gbcd.prompting.prompt_shapes import TASK
from gbcd.run.commits import read_commits, read_table
from gbcd.run.results import EDGES_FILE, read_components, read_stored, summary
from gbcd.run.store import Store

#: Statistics whose nodes give edges a score (the smaller of their ends'), beside the one that ranks.
NODE_SCORES_FOR_EDGES = ("grad_norm", "writing_norm")


class Measured(NamedTuple):
    """What the first stage measured of a task.

    Attributes:
        task: its name.
        planned: what was asked for.
        components: heads and MLPs, or their parts.
        rows: a row per pair: `clean`, `counterfactual`, a list for every ablation and baseline.
        edges: mean over pairs of the scores of edges, by baseline.
        draws: of templates.
    """

    task: str
    planned: TaskPlan
    components: list[Component]
    rows: pl.DataFrame
    edges: dict[str, Float[np.ndarray, " edges"]]
    draws: Draws

    def values(self, name: str) -> Float[np.ndarray, "prompts components"]:
        """A list for every pair as a table."""
        return np.array(self.rows[name].to_list(), dtype=np.float64)

    @property
    def gap(self) -> Float[np.ndarray, " resamples"]:
        """Mean metric on the prompts less that on their counterfactuals."""
        return self.draws.means((self.rows["clean"] - self.rows["counterfactual"]).to_numpy())

    @property
    def ablated(self) -> list[int]:
        """Which components were ablated."""
        return [index for index, one in enumerate(self.components) if one.name in self.planned.nodes]


def read_stage(
    store: Store, folder: str, stage: StageName, planned: EvaluationPlan, task: str
) -> dict[str, pl.DataFrame]:
    """The tables of the shards of a task, one below the other."""
    below = store.below(stage_folder(folder, stage))
    shards = [shard for shard, block in enumerate(planned.blocks()) if block.task == task]
    files = [commit.files for commit in read_commits(below, shards)]
    return {name: pl.concat([pl.DataFrame(read_table(below, one[name])) for one in files]) for name in files[0]}


def read_measured(
    store: Store, folder: str, planned: EvaluationPlan, task: str, components: list[Component], seed: int
) -> Measured:
    """Read the first stage of a task."""
    found = read_stage(store, folder, "effects", planned, task)
    rows = found["effects"].hstack(found["baselines"].drop("prompt_id", "template"))
    edges: dict[str, np.ndarray] = {}
    for method, total in found["edges"].select("method", "sum").iter_rows():
        edges[method] = edges.get(method, 0.0) + np.array(total) / len(rows)
    return Measured(task, planned.tasks[task], components, rows, edges, Draws(rows["template"].to_list(), seed))


def study_scores(store: Store, measured: Measured) -> list[Score]:
    """What the study ranks by, and its other statistics: means over all its prompts."""
    stored = read_components(store)
    names = [one.name for one in (*stored, *NodeMap.of(stored).nodes)]
    chosen = [names.index(component.name) for component in measured.components]
    scores: list[Score] = []
    for key, by_statistic in read_template_sums(store).items():
        if key.task != measured.task:
            continue
        passes = 4.0 if wrong_answers.get(key.wrong_answer).reads_twin else 2.0
        for method, statistic in METHODS.items():
            if statistic in by_statistic and by_statistic[statistic].sizes.sum():
                means = measured.draws.means_of_templates(by_statistic[statistic])[:, chosen]
                # one more pass, over the counterfactual
                cost = passes + (method in ("contrast_norm", "attribution"))
                scores.append(Score(Method(method, key.wrong_answer, cost), np.abs(means)))
    return scores


def baseline_scores(measured: Measured) -> list[Score]:
    """Sizes of means over the pairs."""
    return [
        Score(Method(name, None, one.passes), np.abs(measured.draws.means(measured.values(name))))
        for name, one in every_baseline().items()
        if name in measured.rows.columns
    ]


def ranking_score(store: Store, measured: Measured, scores: Sequence[Score]) -> Score | None:
    """The one that ranks the components of the study, under its first wrong answer."""
    ranked = summary(store.location).filter(task=measured.task).select("wrong_answer", "score_name")
    for wrong_answer, name in ranked.unique(maintain_order=True).collect().iter_rows():
        for score in scores:
            if score.of[:2] == (name, wrong_answer):
                return score
    return None


def edge_scores(
    store: Store, measured: Measured, scores: Sequence[Score], ranking: Score | None, table: EdgeTable
) -> list[EdgeScore]:
    """Of the study where it scored edges, of baselines, and of some scores of nodes."""
    found: list[EdgeScore] = []
    if store.exists(EDGES_FILE):
        rows = read_stored(store, EDGES_FILE).filter(task=measured.task)
        for (wrong_answer,), group in rows.group_by("wrong_answer", maintain_order=True):
            found.append(EdgeScore(Method("edges", str(wrong_answer), 3.0), group["mean"].to_numpy()))
    found += [
        EdgeScore(Method(name, None, every_baseline()[name].passes), values) for name, values in measured.edges.items()
    ]
    for score in scores:
        if score is ranking or score.of.method in NODE_SCORES_FOR_EDGES:
            named = zip((one.name for one in measured.components), score.resamples[0].tolist(), strict=True)
            found.append(EdgeScore(score.of, table.of_nodes(dict(named)), True))
    return found


def truths(measured: Measured, model: str, level: str) -> list[Truth]:
    """What ablation finds, and what papers have found."""
    names = [component.name for component in measured.components]
    counts = [measured.planned.nodes[names[index]] for index in measured.ablated]
    found: list[Truth] = []
    for ablation in measured.planned.ablations:
        effects = np.repeat(measured.draws.means(measured.values(ablation)), counts, axis=1)
        found.append(measured_truth(ablation, effects, measured.gap, np.repeat(measured.ablated, counts)))
    task = tasks.get(measured.task) if measured.task != TASK else None
    if task is not None and task.circuit is not None and model in (task.circuit.model, task.model):
        members = task.circuit.nodes if level == "node" else task.circuit.parts
        if members:
            inside = np.tile([name in members for name in names], (len(measured.draws.weights), 1))
            found.append(Truth("published", inside, None, np.arange(len(names))))
    return found


def groups(components: Sequence[Component]) -> dict[str, Bool[np.ndarray, " components"]]:
    """Components by kind."""
    heads = np.array([component.head is not None for component in components])
    shared = np.array([component.is_group for component in components])
    found = {"all": np.ones_like(heads), "heads": heads, "groups": shared, "mlps": ~heads & ~shared}
    return {name: inside for name, inside in found.items() if inside.any()}


def effect_rows(measured: Measured) -> Iterator[dict[str, Any]]:
    """Rows of the table of effects: ablations of what was ablated, signed baselines of everything."""
    tables = {
        name: (measured.ablated, float(measured.rows[f"{name}_passes"].to_numpy().mean()))
        for name in measured.planned.ablations
    } | {
        name: (list(range(len(measured.components))), one.passes)
        for name, one in every_baseline().items()
        if one.signed and name in measured.rows.columns
    }
    gap = float(measured.gap[0])
    for method, (columns, cost) in tables.items():
        means = measured.draws.means(measured.values(method))
        for column, index in enumerate(columns):
            one = measured.components[index]
            yield {
                **{name: getattr(one, name) for name in ("node", "part", "layer", "head")},
                "method": method,
                "component": one.name,
                "gap": gap,
                "cost": cost,
                **measured.draws.bounded("value", means[:, column]),
                "weight": measured.planned.nodes.get(one.name, 1),
                "n_unpatched": measured.planned.n_refused,
            }


def drop_rows(measured: Measured) -> pl.DataFrame:
    """Table `DROPS`."""
    names = [measured.components[index].name for index in measured.ablated]
    return pl.concat(
        measured.rows.select("prompt_id", "template", pl.lit(name).alias("ablation"), pl.col(name).alias("drop"))
        .with_columns(pl.lit(names).alias("component"))
        .explode("component", "drop")
        .select("prompt_id", "template", "ablation", "component", "drop")
        for name in measured.planned.ablations
    )


def edge_config(loaded: LoadedModel) -> Config | None:
    """Shape of a model whose edges can be scored: one with norms and an MLP in every block."""
    return None if None in loaded.spec.mlps else Config.of(loaded.components, loaded.spec.parallel)
