"""What a report is made of, apart from where it was read: scores, effects, edges, single prompts, and their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import polars as pl

from gbcd.analysis.nodes import Key
from gbcd.evaluation.tables import EDGE_FAITHFULNESS, EFFECTS, EVALUATION, FAITHFULNESS
from gbcd.printing import number
from gbcd.wrong_answers import sign_of

#: Components times groups that a page can carry within its size; groups beyond are left out, and the page says so.
MAX_CELLS = 40_000

#: Attributions that compare with more than zero; norms, the one that stands beside them first; all statistics.
COMPARED = ("attribution", "mean_attribution")
NORMS = ("writing_norm", "centered_grad_norm", "contrast_norm", "grad_norm")
STATISTICS = (*COMPARED, "taylor", *NORMS)

#: Kinds of components.
KINDS = ["attention", "MLP"]

#: What people call the scores, where it is not their name in tables.
LABELS = {
    "mean_attribution": "attribution, from the mean",
    "taylor": "Taylor, from zero",
    "writing_norm": "norm",
    "centered_grad_norm": "centred norm, all parts",
    "grad_norm": "gradient norm, all parts",
    "mean_attribution_signed": "attribution, from the mean, signed",
    "taylor_signed": "Taylor, signed",
    "effect": "measured effect",
    "attribution_patching_ig": "attribution patching, IG",
    "relp": "RelP",
    "gim": "GIM",
    "edges": "attribution of edges",
    "hisp": "head importance",
    "weight_norm": "norm of the weights",
    "layer_index": "index of the layer",
    "parameter_count": "number of parameters",
    "random": "random order",
}

#: Effects that decide what is in the circuit: the first that was measured.
TRUTHS = ("resample", "mean", "zero")


class Measured(NamedTuple):
    """The tables of an evaluation, empty where there was none; effects are finite and so are the gaps."""

    figures: pl.DataFrame = pl.DataFrame(schema=EVALUATION)
    effects: pl.DataFrame = pl.DataFrame(schema=EFFECTS)
    faithfulness: pl.DataFrame = pl.DataFrame(schema=FAITHFULNESS)
    edge_faithfulness: pl.DataFrame = pl.DataFrame(schema=EDGE_FAITHFULNESS)

    def of_group(self, key: Key) -> Measured:
        """Rows about the scores of one task and wrong answer, and about what depends on the task alone."""
        is_task = pl.col("task") == key.task
        of_either = (pl.col("wrong_answer") == key.wrong_answer) | pl.col("wrong_answer").is_null()
        figures, nodes, edges = (
            table.filter(is_task, of_either) for table in (self.figures, self.faithfulness, self.edge_faithfulness)
        )
        return Measured(figures, self.effects.filter(is_task), nodes, edges)


#: A prompt of each task with what `wrong_answer`, the first of its definitions, picked (`wrong_token`), and shares
#: of its prompts: those that the model solves by its first choice (`correct`) and by right against wrong answer
#: (`above_wrong`), and those that are compared with a `partner`; null where not defined.
EXAMPLES = pl.Schema(
    {name: pl.String() for name in ("task", "prompt", "answer", "wrong_answer", "wrong_token")}
    | {"n": pl.Int64()}
    | {name: pl.Float64() for name in ("correct", "above_wrong", "partner")}
)


@dataclass(frozen=True)
class Group:
    """One task and wrong answer whose components have scores.

    Attributes:
        id: as controls and tables name it.
        key: task and wrong answer.
        nodes: rows of the summary: heads and MLPs, best first.
        parts: the same of their parts.
        measured: of its task.
    """

    id: str
    key: Key
    nodes: pl.DataFrame
    parts: pl.DataFrame
    measured: Measured

    @property
    def is_evaluated(self) -> bool:
        """Whether effects of its components were measured."""
        return not self.measured.effects.is_empty()

    @property
    def title(self) -> str:
        """As people read it."""
        return f"{self.key.task}, {self.key.wrong_answer}"

    @property
    def sign(self) -> str:
        """What the sign of an attribution says."""
        return sign_of(self.key.wrong_answer)

    @property
    def score_name(self) -> str:
        """The statistic whose mean ranks."""
        return str(self.nodes["score_name"][0])

    @cached_property
    def statistics(self) -> dict[str, str]:
        """Statistics of the nodes, the one that ranks first, with what their columns begin with."""
        columns = self.nodes.columns
        prefixes = {name: f"{name}_signed" if f"{name}_signed_mean" in columns else name for name in STATISTICS}
        found = [name for name, prefix in prefixes.items() if f"{prefix}_mean" in columns]
        finite = [name for name in found if self.nodes[f"{prefixes[name]}_mean"].is_finite().any()]
        return {name: prefixes[name] for name in sorted(finite, key=lambda name: name != self.score_name)}

    def columns(self, statistic: str | None, name: str) -> list[pl.Expr]:
        """Mean and interval of a statistic as `name`, `name_low`, `name_high`; null without a statistic."""
        if statistic is None:
            return [pl.lit(None, pl.Float64).alias(column) for column in (name, *ends(name))]
        return interval(name, prefix=f"{self.statistics[statistic]}_")

    @property
    def attribution(self) -> str | None:
        """The attribution that ranks or says most; Taylor scores, which compare with zero, are none."""
        return next((name for name in self.statistics if name in COMPARED), None)

    @property
    def norm(self) -> str | None:
        """The norm that stands beside it."""
        return next((name for name in self.statistics if name in NORMS), None)

    @cached_property
    def scores(self) -> pl.DataFrame:
        """Heads and MLPs, best first: `rank, component, layer, head, score, kind`, attribution and norm, and effects.

        `rank, attribution, norm, effect` have intervals (`ends`) and are null where there are none. `agreement` is the
        share of prompts with the sign of the attribution, in per cent; `norm_rank` the rank by the norm.
        """
        both = [*self.columns(self.attribution, "attribution"), *self.columns(self.norm, "norm")]
        agreement = f"{self.attribution}_sign_agreement"
        share = 100 * pl.col(agreement) if agreement in self.nodes.columns else pl.lit(None, pl.Float64)
        keys = {"rank": "rank", "rank_low": "rank_ci_low", "rank_high": "rank_ci_high"}
        named = ("component", "layer", "head", "score")
        table = self.nodes.select(*named, *both, **keys, agreement=share, kind=kind())
        ranked = table.with_columns(norm_rank=pl.col("norm").rank("min", descending=True))
        return ranked.join(self.effects(), on="component", how="left", maintain_order="left")

    @cached_property
    def truth(self) -> str | None:
        """The effect that decides what is in the circuit; None where nothing was measured."""
        return next((name for name in TRUTHS if name in self.measured.effects["method"]), None)

    def effects(self, method: str | None = None) -> pl.DataFrame:
        """One kind of effect, by default the `truth`: `component, effect, effect_low, effect_high`, in % of the gap."""
        value, low, high = (100 * pl.col(name) / pl.col("gap") for name in ("value", "ci_low", "ci_high"))
        bounds = {"effect_low": pl.min_horizontal(low, high), "effect_high": pl.max_horizontal(low, high)}
        rows = self.measured.effects.filter(pl.col("method") == (method or self.truth or ""))
        return rows.select("component", effect=value, **bounds)

    @cached_property
    def figures(self) -> pl.DataFrame:
        """Figures of all components against the truth, and those that need none; no rows where nothing was measured."""
        is_of_truth = pl.col("truth").fill_null(self.truth or "") == (self.truth or "")
        return self.measured.figures.filter(is_of_truth, pl.col("group") == "all", pl.col("value").is_finite())

    def figure(self, method: str, figure: str) -> str | None:
        """One of them with its interval, as text; None where it is not defined."""
        rows = self.figures.filter(pl.col("method") == method, pl.col("figure") == figure)
        return bounded(*rows.select("value", "ci_low", "ci_high").row(0)) if rows.height else None


@dataclass(frozen=True)
class ReportData:
    """What a page is made of.

    Attributes:
        location: of the results.
        model: name or folder of the model.
        source: the prompt file; None where prompts are drawn from tasks.
        computed: how it was computed, as facts.
        problems: what is missing or could not be read, a sentence each.
        summary: one row per task, wrong answer, level and component.
        examples: one row per task, as `EXAMPLES`.
        statuses: prompts by status, under the wrong answer that gives it to most.
        edges: `source, target, mean, ci_low, ci_high` of the largest edges by group, in the order of `edges.parquet`.
        neurons: `node, neuron, mean, ci_low, ci_high` of the largest attributions by group, the largest first.
        samples: a row for each of some prompts, drawn at random, by group: `template`, and of every head and MLP, under
            its name, the value of the statistic that ranks, with its sign.
        extremes: rows of `gbcd.prompts` with `statistic`, `end` (`most`, `least`) and `response`.
    """

    location: str
    model: str
    source: str | None
    computed: list[tuple[str, str]]
    summary: pl.DataFrame
    examples: pl.DataFrame
    statuses: Mapping[str, int] = field(default_factory=dict[str, int])
    problems: list[str] = field(default_factory=list[str])
    measured: Measured = field(default_factory=Measured)
    edges: Mapping[Key, pl.DataFrame] = field(default_factory=dict[Key, pl.DataFrame])
    neurons: Mapping[Key, pl.DataFrame] = field(default_factory=dict[Key, pl.DataFrame])
    samples: Mapping[Key, pl.DataFrame] = field(default_factory=dict[Key, pl.DataFrame])
    extremes: pl.DataFrame = field(default_factory=pl.DataFrame)

    @cached_property
    def ranked(self) -> list[Group]:
        """Tasks and wrong answers with scores, in the order of the study."""
        ranked = self.summary.filter(pl.col("rank").is_not_null()).sort("rank", maintain_order=True)
        tables = ranked.partition_by("task", "wrong_answer", "level", as_dict=True)
        keys = [key for key in self.keys if (*key, "node") in tables]
        return [
            Group(
                str(index),
                key,
                tables[*key, "node"],
                tables.get((*key, "part"), tables[*key, "node"].clear()),
                self.measured.of_group(key),
            )
            for index, key in enumerate(keys)
        ]

    @cached_property
    def groups(self) -> list[Group]:
        """Those that the page shows."""
        n_components = max(1, self.summary["component"].n_unique())
        return self.ranked[: max(1, MAX_CELLS // n_components)]

    @property
    def wrong_answers(self) -> list[str]:
        """Of the study."""
        return list(dict.fromkeys(group.wrong_answer for group in self.keys))

    @cached_property
    def keys(self) -> list[Key]:
        """Tasks and wrong answers of the study, with and without scores."""
        found = self.summary.select("task", "wrong_answer").unique(maintain_order=True)
        return [Key(*row) for row in found.iter_rows()]

    def called(self, task: str) -> str:
        """What prompts come from, as people call it: a task, or the name of the file."""
        return task if self.source is None else last(self.source)


def ends(name: str) -> tuple[str, str]:
    """Columns of the ends of the interval of the column `name`."""
    return f"{name}_low", f"{name}_high"


def interval(name: str, value: str = "mean", prefix: str = "") -> list[pl.Expr]:
    """A value and its interval as `name` and its `ends`, where tables have `value`, `ci_low` and `ci_high`."""
    columns = zip((value, "ci_low", "ci_high"), (name, *ends(name)), strict=True)
    return [pl.col(f"{prefix}{of}").alias(column) for of, column in columns]


def kind() -> pl.Expr:
    """One of `KINDS`, by the name of the component: `a3.h5` and `a3.g1` are attention, `m3` is an MLP."""
    return pl.when(pl.col("component").str.starts_with("m")).then(pl.lit(KINDS[1])).otherwise(pl.lit(KINDS[0]))


def last(path: str) -> str:
    """The last name of a path."""
    return path.rstrip("/").rpartition("/")[2]


def label(name: str) -> str:
    """What people call the score that tables call `name`."""
    return LABELS.get(name, name.replace("_", " "))


def bounded(value: float | None, low: float | None, high: float | None) -> str:
    """A number with its interval, where it has one."""
    has_interval = all(end is not None and end == end for end in (low, high))
    return number(value) + (f" [{number(low)}, {number(high)}]" if has_interval else "")
