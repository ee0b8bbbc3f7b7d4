"""What the reduction leaves for those that come after it: they read these files and no shard.

analysis/template_sums.parquet      of every statistic, by template: other draws of templates are made of these
analysis/counts.parquet             how many prompts have which status, reference, and so on
analysis/sample.TASK.WRONG.parquet  prompts in random order, with the values of their heads and MLPs
analysis/extremes.parquet           the prompts with the largest and the smallest values
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float, Float32, Int

from gbcd.analysis.collect import Collected, ranked_nodes
from gbcd.analysis.nodes import SUMMARISED, Key, NodeMap
from gbcd.component import Component, file_name
from gbcd.errors import BadInput
from gbcd.run.results import encoded, read_components, read_stored, summary
from gbcd.run.store import Store

_TEMPLATES = "analysis/template_sums.parquet"

COUNTS_FILE = "analysis/counts.parquet"
"""Prompts by the values of some columns of `gbcd.prompts`: `task, wrong_answer, column, value, n`."""

EXTREMES_FILE = "analysis/extremes.parquet"
"""Rows of `gbcd.prompts` with `statistic`, `end` (`most`, `least`) and `response`, the norm of the prompt's values."""


class TemplateSums(NamedTuple):
    """One statistic of one task and wrong answer: sums over the prompts of each template.

    Attributes:
        templates: names; beyond the 100th, several share one.
        sizes: prompts of each.
        sums: of every part, then every node, in the order of `components.parquet` and `NodeMap`.
    """

    templates: list[str]
    sizes: Int[np.ndarray, " templates"]
    sums: Float[np.ndarray, "templates columns"]


class Sample(NamedTuple):
    """Prompts of one task and wrong answer, drawn at random and in random order.

    Attributes:
        prompts: their rows of the table `gbcd.prompts`.
        nodes: the heads, groups and MLPs.
        values: by statistic, attributions with their signs; NaN where a prompt has none.
    """

    prompts: pl.DataFrame
    nodes: list[Component]
    values: dict[str, Float32[np.ndarray, "prompts nodes"]]


class PromptRows(NamedTuple):
    """The statistic that ranks components, of single prompts.

    Attributes:
        values: attributions with their signs.
        prompts: rows of `gbcd.prompts`, one per row of the values.
        nodes: one per column.
    """

    values: Float[np.ndarray, "prompts nodes"]
    prompts: pl.DataFrame
    nodes: list[Component]


def store_collected(store: Store, collected: Collected, components: list[Component]) -> None:
    """Write all of it."""
    sums = [
        pl.DataFrame(
            {
                "task": key.task,
                "wrong_answer": key.wrong_answer,
                "statistic": statistic,
                "template": list(moments.clusters.names)[: len(some.sizes)],
                "n": some.sizes,
                "sums": list(some.sums),
            }
        )
        for key, moments in collected.moments.items()
        for statistic, some in moments.by_statistic.items()
    ]
    empty = pl.DataFrame(schema={"task": pl.String, "wrong_answer": pl.String, "statistic": pl.String})
    store.write(_TEMPLATES, encoded((pl.concat(sums) if sums else empty).to_arrow()))
    store.write(COUNTS_FILE, encoded(collected.counts.to_arrow()))
    extremes = list(collected.extremes.values())
    store.write(EXTREMES_FILE, encoded((pl.concat(extremes) if extremes else empty).to_arrow()))
    for key, sample in collected.samples.items():
        store.write(_sample_file(key), encoded(sample.to_arrow()))


def read_template_sums(store: Store) -> dict[Key, dict[str, TemplateSums]]:
    """Sums by template, by task and wrong answer and by statistic; attributions are there with and without sign.

    Raises:
        BadInput: the study has not been reduced.
    """
    found: dict[Key, dict[str, TemplateSums]] = {}
    table = read_stored(store, _TEMPLATES)
    for (task, wrong_answer, statistic), rows in table.group_by(
        "task", "wrong_answer", "statistic", maintain_order=True
    ):
        sums = TemplateSums(rows["template"].to_list(), rows["n"].to_numpy(), np.stack(rows["sums"].to_list()))
        found.setdefault(Key(str(task), str(wrong_answer)), {})[str(statistic)] = sums
    return found


def read_sample(store: Store, key: Key, statistics: tuple[str, ...] = SUMMARISED) -> Sample:
    """The sample of one task and wrong answer, empty where no prompt has values; only `statistics` are read.

    Raises:
        BadInput: the study has not been reduced.
    """
    nodes = NodeMap.of(read_components(store))
    chosen = [nodes.nodes[index] for index in ranked_nodes(nodes)]
    if not store.exists(_sample_file(key)):
        read_stored(store, COUNTS_FILE)
        return Sample(pl.DataFrame(schema={"prompt_id": pl.String, "template": pl.String}), chosen, {})
    table = read_stored(store, _sample_file(key))
    values = {name: _matrix(table[name], len(chosen)) for name in statistics if name in table.columns}
    return Sample(table.drop(SUMMARISED, strict=False), chosen, values)


def read_prompt_rows(out: str, wrong_answer: str | None = None) -> PromptRows:
    """What ranks the components of a study, prompt by prompt: the samples of all its tasks in one table.

    Args:
        out: a results folder.
        wrong_answer: needed where the study has several.

    Raises:
        BadInput: the study has not been reduced, or the wrong answer is not of it, or no prompt has values.
    """
    store = Store(out)
    groups = summary(out).select("task", "wrong_answer", "score_name").unique(maintain_order=True).collect()
    known = groups["wrong_answer"].unique(maintain_order=True).to_list()
    wanted = known[0] if wrong_answer is None and len(known) == 1 else wrong_answer
    if wanted is None or wanted not in known:
        raise BadInput(f"{store.location!r}: name one wrong answer of {', '.join(known)}")
    ranked = groups.filter(pl.col("wrong_answer") == wanted, pl.col("score_name").is_not_null())
    samples = [
        (name, read_sample(store, Key(task, wanted), (name,)))
        for task, name in ranked.select("task", "score_name").iter_rows()
    ]
    complete = [
        (sample, np.flatnonzero(np.isfinite(sample.values[name]).all(axis=1)), name) for name, sample in samples
    ]
    if not complete:
        raise BadInput(f"{store.location!r}: no prompt has finite values under {wanted}")
    return PromptRows(
        np.concatenate([sample.values[name][rows] for sample, rows, name in complete]).astype(np.float64),
        pl.concat([sample.prompts[rows] for sample, rows, _ in complete]),
        complete[0][0].nodes,
    )


def _sample_file(key: Key) -> str:
    return file_name("analysis/sample", *key, suffix="parquet")


def _matrix(values: pl.Series, n_nodes: int) -> Float32[np.ndarray, "prompts nodes"]:
    """Null lists become NaN."""
    width = pl.Series([[np.nan] * n_nodes], dtype=pl.List(pl.Float32))
    lists = values.cast(pl.List(pl.Float32))
    filled = pl.select(pl.when(lists.is_null()).then(width).otherwise(lists).alias("v"))["v"]
    return filled.explode().to_numpy().reshape(len(values), n_nodes).astype(np.float32)
