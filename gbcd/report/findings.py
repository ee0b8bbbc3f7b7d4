"""Everything that the sections draw from: what was planned, what came of it, the summary, and the evaluation if any."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property

import polars as pl

from gbcd.analysis.ranking import DEFAULT_SCORES as SCORES
from gbcd.analysis.shard_values import SUMMARISED, Key
from gbcd.component import Component
from gbcd.errors import BadInput
from gbcd.evaluation.tables import EFFECTS, EFFECTS_FILE, EVALUATION_FILE, FAITHFULNESS_FILE
from gbcd.report.prompt_pass import PromptFindings, pass_over
from gbcd.run.commits import Commit, read_commits
from gbcd.run.quarantine import Quarantine, quarantined
from gbcd.run.results import SUMMARY_FILE, read_components
from gbcd.run.shards import Plan, read_plan
from gbcd.run.store import Store

#: Components times groups that a page can carry within its size; groups beyond are left out, and the page says so.
MAX_CELLS = 40_000


@dataclass(frozen=True)
class Measured:
    """The tables of an evaluation."""

    figures: pl.DataFrame
    effects: pl.DataFrame
    faithfulness: pl.DataFrame

    def has_nodes(self, task: str) -> bool:
        """Whether heads and MLPs of the task were ablated, and not their parts."""
        rows = self.effects.filter(pl.col("task") == task)
        return rows.height > 0 and (rows["component"] == rows["node"]).all()


@dataclass(frozen=True)
class Findings:
    """What a results folder holds.

    Attributes:
        store: the folder.
        plan: what was wanted.
        commits: the shards that are there.
        quarantined: those that were given up, and prompts of committed ones that were.
        components: the parts of the model.
        summary: table `gbcd.analysis.reduce.SUMMARY`.
        measured: None where nothing was evaluated.
    """

    store: Store
    plan: Plan
    commits: list[Commit]
    quarantined: list[Quarantine]
    components: list[Component]
    summary: pl.DataFrame
    measured: Measured | None

    @cached_property
    def all_groups(self) -> list[Key]:
        """Tasks and wrong answers, in the order of the study."""
        return [
            Key(*row) for row in self.summary.select("task", "wrong_answer").unique(maintain_order=True).iter_rows()
        ]

    @cached_property
    def groups(self) -> list[Key]:
        """Those that the page shows."""
        return self.all_groups[: max(1, MAX_CELLS // max(1, len(self.components)))]

    @cached_property
    def statistics(self) -> list[str]:
        """Those that the summary describes, the one that ranks first."""
        described = [name for name in SUMMARISED if self.summary[f"{name}_n"].max()]
        return sorted(described, key=lambda name: SCORES.index(name) if name in SCORES else len(SCORES))

    @cached_property
    def ranked_by(self) -> dict[Key, str]:
        """The statistic whose mean is the score, by group."""
        found: dict[Key, str] = {}
        for group in self.groups:
            rows = self.nodes(group)
            found[group] = str(rows["score_name"][0])
        return found

    @cached_property
    def prompts(self) -> dict[Key, PromptFindings]:
        """What single prompts say, by group."""
        return pass_over(self.store, self.components, self.ranked_by)

    def source(self, task: str) -> str:
        """What prompts come from, as people call it: a task, or the name of the file."""
        file = self.plan.study.prompts
        return task if file is None else last(file)

    def nodes(self, group: Key) -> pl.DataFrame:
        """The heads and MLPs of a group, best first."""
        return self._rows(group).filter(pl.col("level") == "node").sort("rank")

    def parts(self, group: Key) -> pl.DataFrame:
        """Their parts, best first."""
        return self._rows(group).filter(pl.col("level") == "part").sort("rank")

    def strongest(self, group: Key, n: int) -> list[str]:
        """Names of the best heads and MLPs, `n` at most: none whose score is zero."""
        return self.nodes(group).filter(pl.col("score") > 0)["component"].head(n).to_list()

    def nodes_and_parts(self, group: Key) -> pl.DataFrame:
        """Both, nodes first."""
        return pl.concat([self.nodes(group), self.parts(group)])

    def _rows(self, group: Key) -> pl.DataFrame:
        return self.summary.filter(
            pl.col("task") == group.task, pl.col("wrong_answer") == group.wrong_answer, pl.col("rank").is_not_null()
        )


def read_findings(out: str) -> Findings:
    """Read a results folder.

    Raises:
        BadInput: there is no study in it, it was not reduced, or an older version evaluated it.
    """
    store = Store(out)
    plan = read_plan(store)
    if not store.exists(SUMMARY_FILE):
        raise BadInput(f"{store.location!r} holds no {SUMMARY_FILE} (yet): run the study, or `gbcd reduce`")
    measured = None
    if store.exists(EVALUATION_FILE):
        measured = Measured(*(_table(store, path) for path in (EVALUATION_FILE, EFFECTS_FILE, FAITHFULNESS_FILE)))
        if missing := set(EFFECTS) - set(measured.effects.columns):
            raise BadInput(
                f"{EFFECTS_FILE!r} in {store.location!r} lacks the columns {', '.join(sorted(missing))}: an older "
                "version wrote it. Run `gbcd evaluate` again."
            )
    return Findings(
        store=store,
        plan=plan,
        commits=read_commits(store),
        quarantined=quarantined(store),
        components=read_components(store),
        summary=_table(store, SUMMARY_FILE),
        measured=measured,
    )


def last(path: str) -> str:
    """The last name of a path."""
    return path.rstrip("/").rpartition("/")[2]


def _table(store: Store, path: str) -> pl.DataFrame:
    return pl.read_parquet(io.BytesIO(store.read(path)))
