"""Which circuits are run: of growing size, by every score, of nodes and of edges as MIB cuts them.

MIB (Mueller et al. 2025, arXiv 2504.13151, section 3) takes the `int(p * n)` edges with the largest scores for each p
of `SIZES`, without dead ends. Signed scores cut the circuits whose performance ratio is measured (CPR), their sizes
those whose distance from the model is (CMD). Sizes also grow circuits from the logits (`greedy`, Hanna et al. 2024,
arXiv 2403.17806), of scores that edges have of their own. A score of nodes says nothing of single edges, but an edge
matters no more than either of its ends, so it has the smaller of their scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from gbcd.analysis.circuits import INPUT, LOGITS, Config, edge_ends
from gbcd.analysis.selection import grown, numbered, without_dead_ends
from gbcd.evaluation.recovery import Method, Score
from gbcd.run.results import encoded, read_stored
from gbcd.run.store import Store

Kind = Literal["nodes", "edges"]
Ranking = Literal["signed", "size", "greedy"]

#: Shares of the components, or of the edges, at which circuits are cut.
SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

_FILE = "circuits.parquet"


class EdgeScore(NamedTuple):
    """Scores of all edges, in canonical order.

    Attributes:
        of: which score it is.
        values: of edges.
        of_nodes: whether they are made of scores of nodes.
    """

    of: Method
    values: Float[np.ndarray, " edges"]
    of_nodes: bool = False


class EdgeTable:
    """The edges of a model."""

    def __init__(self, cfg: Config) -> None:
        """List them."""
        sources, targets = edge_ends(cfg)
        self.frame = pl.DataFrame({"source": sources, "target": targets})
        self.n, self._ends = len(sources), numbered(self.frame)

    def of_nodes(self, scores: Mapping[str, float]) -> Float[np.ndarray, " edges"]:
        """For each edge the smaller of the scores of its ends; `input` and `logits` are above all."""
        known = {**scores, INPUT: np.inf, LOGITS: np.inf}
        nodes = self.frame["target"].str.split("<").list.first()
        ends = ([known.get(name, 0.0) for name in names] for names in (self.frame["source"], nodes))
        least = np.minimum(*(np.array(values) for values in ends))
        return np.where(np.isfinite(least), least, max(scores.values()))

    def cut(
        self, scores: Float[np.ndarray, " edges"], ranking: Ranking, counts: Sequence[int] | None = None
    ) -> list[Int[np.ndarray, " members"]]:
        """The edges of the circuit of each of `SIZES`, or of so many edges (`counts`) before dead ends are dropped."""
        counts = [int(share * self.n) for share in SIZES] if counts is None else counts
        sizes = scores if ranking == "signed" else np.abs(scores)
        order = grown(self._ends, sizes) if ranking == "greedy" else np.argsort(-sizes, kind="stable")
        return [without_dead_ends(self._ends, order[:count]) for count in counts]


class Circuits:
    """Distinct circuits of a task, each a set of indices of components or of edges, by kind."""

    def __init__(self) -> None:
        """None yet."""
        self._known: dict[tuple[Kind, bytes], int] = {}
        self.members: dict[Kind, list[Int[np.ndarray, " members"]]] = {"nodes": [], "edges": []}

    def add(self, kind: Kind, members: Sequence[int] | Int[np.ndarray, " members"]) -> int:
        """Number of a circuit among those of its kind."""
        found = np.sort(np.asarray(members, dtype=np.int64))
        number = self._known.setdefault((kind, found.tobytes()), len(self.members[kind]))
        if number == len(self.members[kind]):
            self.members[kind].append(found)
        return number

    def lists(self, kind: Kind) -> list[list[int]]:
        """The circuits of a kind, in the order of their numbers."""
        return [members.tolist() for members in self.members[kind]]

    @property
    def n_runs(self) -> int:
        """Forward passes of one pair; a circuit of edges takes about two."""
        return len(self.members["nodes"]) + 2 * len(self.members["edges"])


def of_nodes(circuits: Circuits, score: Score) -> list[int]:
    """Numbers of the circuits of nodes of a score, one for each of `SIZES`; of equal scores the first is taken."""
    order = np.argsort(-score.resamples[0], kind="stable")
    return [circuits.add("nodes", order[: round(size * len(order))]) for size in SIZES]


def of_edges(circuits: Circuits, table: EdgeTable, score: EdgeScore, ranking: Ranking) -> list[int]:
    """The same of edges."""
    return [circuits.add("edges", members) for members in table.cut(score.values, ranking)]


def store_circuits(store: Store, folder: str, by_task: Mapping[str, Circuits]) -> None:
    """Write what workers are to run; the first to write wins, and all write the same."""
    rows = [
        {"task": task, "kind": kind, "members": members}
        for task, circuits in by_task.items()
        for kind in circuits.members
        for members in circuits.lists(kind)
    ]
    table = pl.DataFrame(rows, schema={"task": pl.String, "kind": pl.String, "members": pl.List(pl.Int64)})
    store.create(f"{folder}/{_FILE}", encoded(table.to_arrow()))


def read_circuits(store: Store, folder: str, task: str) -> dict[Kind, list[list[int]]]:
    """The circuits of a task, in the order of their numbers."""
    table = read_stored(store, f"{folder}/{_FILE}").filter(task=task)
    kinds: tuple[Kind, ...] = ("nodes", "edges")
    return {kind: table.filter(kind=kind)["members"].to_list() for kind in kinds}
