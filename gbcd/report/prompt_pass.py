"""What single prompts say, in one pass over the shards and bounded memory.

Shards are random draws from their task, so the first prompts are a sample of all, and means over the first 16, 32, ...
of them show how soon the ranking settles.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
import pyarrow as pa
from jaxtyping import Float

from gbcd.analysis.nodes import NodeMap
from gbcd.analysis.shard_values import Key, Values, finite_values, keys, rows_of
from gbcd.component import Component
from gbcd.run.results import shard_tables
from gbcd.run.store import Store

#: Prompts of a group whose values are kept one by one.
SAMPLE = 2_000

#: Numbers of prompts after which the means are noted.
CHECKPOINTS = tuple(2**power for power in range(4, 27))

#: Prompts that are kept at either end.
EXTREMES = 6


@dataclass
class PromptFindings:
    """Of one task and wrong answer; nodes are the heads and MLPs, in canonical order.

    Attributes:
        names: of the nodes.
        n: prompts so far.
        means: of every node's score, over the first n prompts, by n.
        templates: of the prompts in the sample.
        most, least: response (norm over all nodes) and identifier of prompts at either end; `least` negated.
    """

    names: list[str]
    n: int = 0
    means: dict[int, Float[np.ndarray, " nodes"]] = field(default_factory=dict[int, Float[np.ndarray, " nodes"]])
    templates: list[str] = field(default_factory=list[str])
    most: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])
    least: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])
    _total: Float[np.ndarray, " nodes"] = field(init=False)
    _sample: list[Float[np.ndarray, "nodes prompts"]] = field(default_factory=list[Float[np.ndarray, "nodes prompts"]])

    def __post_init__(self) -> None:
        """Start at zero."""
        self._total = np.zeros(len(self.names))

    @property
    def sample(self) -> Float[np.ndarray, "nodes prompts"]:
        """Scores of the prompts in the sample, `templates` names theirs."""
        return np.concatenate(self._sample, axis=1)[:, :SAMPLE]

    def add(self, values: Float[np.ndarray, "nodes prompts"], templates: Sequence[str], ids: Sequence[str]) -> None:
        """Take in some prompts."""
        running = self._total[:, None] + np.cumsum(values, axis=1)
        for checkpoint in CHECKPOINTS:
            if self.n < checkpoint <= self.n + len(ids):
                self.means[checkpoint] = running[:, checkpoint - self.n - 1] / checkpoint
        if self.n < SAMPLE:
            self._sample.append(values[:, : SAMPLE - self.n])
            self.templates += templates[: SAMPLE - self.n]
        for response, prompt in zip(np.linalg.norm(values, axis=0).tolist(), ids, strict=True):
            _keep(self.most, (response, prompt))
            _keep(self.least, (-response, prompt))
        self._total, self.n = running[:, -1], self.n + len(ids)

    def finish(self) -> None:
        """Note the mean over all prompts too."""
        if self.n:
            self.means[self.n] = self._total / self.n


def pass_over(store: Store, components: Sequence[Component], ranked_by: Mapping[Key, str]) -> dict[Key, PromptFindings]:
    """Read all shards once; `ranked_by` names the groups that are wanted and the statistic of each."""
    nodes = NodeMap.of(components)
    rankable = [index for index, node in enumerate(nodes.nodes) if node.is_circuit_part]
    names = [nodes.nodes[index].name for index in rankable]
    columns = np.array(rankable) + len(components)
    found = {key: PromptFindings(names) for key in ranked_by}
    for shard in shard_tables(store):
        for key in keys(shard.norms):
            if key in found:
                rows = rows_of(shard.norms, key)
                for values in finite_values(rows, nodes):
                    if values.statistic == ranked_by[key]:
                        _add(found[key], values, columns, rows)
    for findings in found.values():
        findings.finish()
    return found


def texts(store: Store, wanted: set[str]) -> pl.DataFrame:
    """Rows of the table of prompts for the identifiers `wanted`."""
    tables = [
        pl.DataFrame(pl.from_arrow(shard.prompts)).filter(pl.col("prompt_id").is_in(list(wanted)))
        for shard in shard_tables(store)
    ]
    return pl.concat(tables)


def _add(findings: PromptFindings, values: Values, columns: np.ndarray, rows: pa.Table) -> None:
    ids = rows["prompt_id"].take(pa.array(values.rows)).to_pylist()
    templates = rows["template"].take(pa.array(values.rows)).to_pylist()
    findings.add(values.values[:, columns].T, templates, ids)


def _keep(heap: list[tuple[float, str]], entry: tuple[float, str]) -> None:
    if len(heap) < EXTREMES:
        heapq.heappush(heap, entry)
    else:
        heapq.heappushpop(heap, entry)
