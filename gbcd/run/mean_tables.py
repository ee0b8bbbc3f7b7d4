"""The mean inputs of a task as tables, and back.

The sample of a task is cut by group (template) into shards, so that all workers measure means and no sum is merged. In
each shard `sample` holds the tokens of its prompts, and `means` a row for each input and group.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from gbcd.engine.calibration import TaskMeans
from gbcd.run.work import Tables

_SAMPLE = pa.schema([("prompt_id", pa.string()), ("group", pa.string()), ("tokens", pa.list_(pa.int32()))])
_MEANS = pa.schema([("name", pa.string()), ("group", pa.string()), ("n_positions", pa.int32())]).append(
    pa.field("means", pa.large_list(pa.float32()))  # of all positions of a large model: more than 2 ** 31 values
)


def tables_from_means(means: TaskMeans) -> Tables:
    """The tables of a task's means."""
    sample = {
        "prompt_id": list(means.members),
        "group": [means.groups[group] for group in means.token_groups.tolist()],
        "tokens": [[token for token in tokens if token >= 0] for tokens in means.tokens.tolist()],
    }
    rows = [
        (name, group, len(mean), mean.numpy().ravel())
        for name, of_groups in means.means.items()
        for group, mean in zip(means.groups, of_groups, strict=True)
    ]
    return {
        "sample": pa.table(sample, schema=_SAMPLE),
        "means": pa.table(dict(zip(_MEANS.names, zip(*rows, strict=True), strict=True)), schema=_MEANS),
    }


def means_from_tables(shards: Sequence[Tables]) -> TaskMeans:
    """The means of a task from all of its shards, each as `tables_from_means` wrote it."""
    sample = pa.concat_tables(shard["sample"] for shard in shards)
    group_of, tokens_of = sample["group"].to_pylist(), sample["tokens"].to_pylist()
    groups = tuple(sorted(set(group_of)))
    length = max(map(len, tokens_of))
    tokens = torch.full((len(tokens_of), length), -1)
    for row, found in zip(tokens, tokens_of, strict=True):
        row[: len(found)] = torch.tensor(found)
    return TaskMeans(
        groups=groups,
        means=_means([shard[name] for shard in shards for name in shard if name != "sample"], groups, length),
        tokens=tokens,
        token_groups=torch.tensor([groups.index(group) for group in group_of]),
        members=tuple(sample["prompt_id"].to_pylist()),
    )


def _means(
    tables: Sequence[pa.Table], groups: Sequence[str], length: int
) -> dict[str, Float[Tensor, "group {length} d_in"]]:
    """By name of the input; groups of shorter prompts end in zeros, which no prompt of theirs reaches."""
    found: dict[str, Tensor] = {}
    for table in tables:
        for name, group, n_positions, values in zip(*table.itercolumns(), strict=True):
            mean = torch.tensor(values.values.to_numpy()).view(n_positions.as_py(), -1)
            if name.as_py() not in found:
                found[name.as_py()] = mean.new_zeros(len(groups), length, mean.shape[1])
            found[name.as_py()][groups.index(group.as_py()), : len(mean)] = mean
    return found
