"""What a report is made of, apart from where it was read: scores, effects, edges, single prompts, and their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float32

from gbcd.analysis.shard_values import Key

#: Components times groups that a page can carry within its size; groups beyond are left out, and the page says so.
MAX_CELLS = 40_000

#: Norms, the one beside an attribution first; attributions, those that compare with more than zero first.
NORMS = ("writing_norm", "centered_grad_norm", "contrast_norm", "grad_norm")
COMPARED = ("attribution", "mean_attribution")

#: What people call the scores.
LABELS = {
    "attribution": "attribution",
    "mean_attribution": "attribution, from the mean",
    "taylor": "Taylor, from zero",
    "writing_norm": "norm",
    "centered_grad_norm": "centred norm, all parts",
    "contrast_norm": "contrast norm",
    "grad_norm": "gradient norm, all parts",
    "effect": "measured effect",
    "direct_effect": "direct effect",
    "attribution_patching": "attribution patching",
    "attribution_patching_ig": "attribution patching, IG",
    "hisp": "head importance",
    "weight_norm": "norm of the weights",
    "layer_index": "index of the layer",
    "parameter_count": "number of parameters",
    "random": "random order",
}

#: Effects that decide what is in the circuit: the first that was measured.
TRUTHS = ("resample", "mean", "zero")


class Statistic(NamedTuple):
    """A statistic over prompts; `is_signed` where the mean is of signed values. Its columns begin with `prefix`."""

    name: str
    is_signed: bool

    @property
    def prefix(self) -> str:
        """Of the columns `_mean`, `_ci_low` and `_ci_high`."""
        return f"{self.name}_signed" if self.is_signed else self.name

    def columns(self) -> list[pl.Expr]:
        """Mean and interval, under the statistic's name."""
        ends = {"": "mean", "_low": "ci_low", "_high": "ci_high"}
        return [pl.col(f"{self.prefix}_{column}").alias(f"{self.name}{end}") for end, column in ends.items()]


@dataclass(frozen=True)
class Measured:
    """The tables of an evaluation, of the tasks whose effects are finite shares of a gap."""

    figures: pl.DataFrame
    effects: pl.DataFrame
    faithfulness: pl.DataFrame

    def truth(self, task: str) -> str | None:
        """The effect that decides what is in the circuit of `task`; None for one that was not evaluated."""
        found = self.effects.filter(pl.col("task") == task)["method"].unique().to_list()
        return next((name for name in TRUTHS if name in found), None)

    def of_group(self, table: pl.DataFrame, group: Key) -> pl.DataFrame:
        """Rows of `table` about the group's scores, and about what depends on the task alone."""
        of_either = (pl.col("wrong_answer") == group.wrong_answer) | pl.col("wrong_answer").is_null()
        return table.filter(pl.col("task") == group.task, of_either)

    def figures_of(self, group: Key) -> pl.DataFrame:
        """Figures of all components against the truth, and those that need none."""
        is_of_truth = (pl.col("truth") == self.truth(group.task)) | pl.col("truth").is_null()
        return self.of_group(self.figures, group).filter(is_of_truth, pl.col("group") == "all")

    def figure(self, group: Key, method: str, figure: str) -> str | None:
        """One of them with its interval; None where it is not defined."""
        rows = self.figures_of(group).filter(
            pl.col("method") == method, pl.col("figure") == figure, pl.col("value").is_finite()
        )
        found = rows.select("value", "ci_low", "ci_high").head(1).rows()
        return bounded(*found[0]) if found else None

    def shares(self, task: str, method: str | None) -> pl.DataFrame:
        """One kind of effect: `component, effect, effect_low, effect_high`, in per cent of the gap."""
        low, high = (100 * pl.col(end) / pl.col("gap") for end in ("ci_low", "ci_high"))
        return self.effects.filter(pl.col("task") == task, pl.col("method") == method).select(
            "component",
            effect=100 * pl.col("value") / pl.col("gap"),
            effect_low=pl.min_horizontal(low, high),
            effect_high=pl.max_horizontal(low, high),
        )


class Sample(NamedTuple):
    """Values of the statistic that ranks, of single prompts of one task and wrong answer, drawn at random.

    Attributes:
        names: of the heads and MLPs.
        values: attributions with their signs.
        templates: of the prompts.
    """

    names: list[str]
    values: Float32[np.ndarray, "prompts nodes"]
    templates: list[str]


#: A prompt of each task, and shares of its prompts: those that the model solves by its first choice (`correct`) and by
#: right against wrong answer (`above_wrong`), and those that are compared with a `partner`; null where not defined.
EXAMPLES = pl.Schema(
    {name: pl.String() for name in ("task", "prompt", "answer")}
    | {"n": pl.Int64()}
    | {name: pl.Float64() for name in ("correct", "above_wrong", "partner")}
)


@dataclass(frozen=True)
class ReportData:
    """What a page is made of.

    Attributes:
        location: of the results.
        model: name or folder of the model.
        source: the prompt file; None where prompts are drawn from tasks.
        wrong_answers: of the study.
        computed: how it was computed, as facts.
        problems: what is missing or could not be read, a sentence each.
        summary: one row per task, wrong answer, level and component.
        examples: one row per task, as `EXAMPLES`.
        statuses: rows of the table of prompts by status.
        measured: None where nothing was evaluated.
        edges: the largest rows of `edges.parquet` by group, in their order.
        samples: what single prompts say, by group.
        extremes: rows of `gbcd.prompts` with `statistic`, `end` (`most`, `least`) and `response`.
    """

    location: str
    model: str
    source: str | None
    wrong_answers: tuple[str, ...]
    computed: list[tuple[str, str]]
    summary: pl.DataFrame
    examples: pl.DataFrame
    statuses: Mapping[str, int] = field(default_factory=dict[str, int])
    problems: list[str] = field(default_factory=list[str])
    measured: Measured | None = None
    edges: Mapping[Key, pl.DataFrame] = field(default_factory=dict[Key, pl.DataFrame])
    samples: Mapping[Key, Sample] = field(default_factory=dict[Key, Sample])
    extremes: pl.DataFrame = field(default_factory=pl.DataFrame)

    @cached_property
    def all_groups(self) -> list[Key]:
        """Tasks and wrong answers, in the order of the study."""
        return [
            Key(*row) for row in self.summary.select("task", "wrong_answer").unique(maintain_order=True).iter_rows()
        ]

    @cached_property
    def ranked_groups(self) -> list[Key]:
        """Those with a score."""
        return [group for group in self.all_groups if self.nodes(group).height]

    @cached_property
    def groups(self) -> list[Key]:
        """Those that the page shows."""
        n_components = max(1, self.summary["component"].n_unique())
        return self.ranked_groups[: max(1, MAX_CELLS // n_components)]

    @property
    def tasks(self) -> list[str]:
        """Those that the page shows."""
        return list(dict.fromkeys(group.task for group in self.groups))

    def called(self, task: str) -> str:
        """What prompts come from, as people call it: a task, or the name of the file."""
        return task if self.source is None else last(self.source)

    def nodes(self, group: Key) -> pl.DataFrame:
        """The heads and MLPs of a group, best first."""
        return self._rows(group, "node")

    def parts(self, group: Key) -> pl.DataFrame:
        """Their parts, best first."""
        return self._rows(group, "part")

    def statistics(self, group: Key) -> list[Statistic]:
        """Those that the nodes of a group have, attributions first."""
        rows = self.nodes(group)
        known = [
            Statistic(name, f"{name}_signed_mean" in rows.columns)
            for name in (*COMPARED, "taylor", *NORMS)
            if f"{name}_ci_low" in rows.columns
        ]
        return [found for found in known if rows[f"{found.prefix}_mean"].is_finite().any()]

    def score_name(self, group: Key) -> str:
        """The statistic whose mean ranks."""
        return str(self.nodes(group)["score_name"][0])

    def attribution(self, group: Key) -> Statistic | None:
        """The attribution that ranks or says most; Taylor scores, which compare with zero, are none."""
        return self._one_of(group, COMPARED)

    def norm(self, group: Key) -> Statistic | None:
        """The norm that stands beside it."""
        return self._one_of(group, NORMS)

    def effects(self, task: str) -> pl.DataFrame:
        """Effects that decide what is in the circuit (`Measured.shares`); no rows where nothing was measured."""
        if self.measured is None:
            return pl.DataFrame(schema={"component": pl.String(), **dict.fromkeys(_EFFECT, pl.Float64())})
        return self.measured.shares(task, self.measured.truth(task))

    def _one_of(self, group: Key, names: tuple[str, ...]) -> Statistic | None:
        found = {statistic.name: statistic for statistic in self.statistics(group)}
        return next((found[name] for name in (self.score_name(group), *names) if name in found and name in names), None)

    def _rows(self, group: Key, level: str) -> pl.DataFrame:
        is_of_group = (pl.col("task") == group.task) & (pl.col("wrong_answer") == group.wrong_answer)
        return self.summary.filter(is_of_group, pl.col("level") == level, pl.col("rank").is_not_null()).sort("rank")


_EFFECT = ("effect", "effect_low", "effect_high")


def last(path: str) -> str:
    """The last name of a path."""
    return path.rstrip("/").rpartition("/")[2]


def label(name: str) -> str:
    """What people call the score that tables call `name`."""
    return LABELS.get(name, name.replace("_", " "))


def number(value: float | None) -> str:
    """A number as text, to three digits; `-` where there is none."""
    return "-" if value is None or value != value else f"{value:,.3g}"


def bounded(value: float | None, low: float | None, high: float | None) -> str:
    """A number with its interval, where it has one."""
    has_interval = all(end is not None and end == end for end in (low, high))
    return number(value) + (f" [{number(low)}, {number(high)}]" if has_interval else "")
