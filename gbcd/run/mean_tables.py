"""The mean inputs of a task as tables, and back.

The sample of a task is cut by group (template) into shards, so that all workers measure means and no sum is merged.
In each shard `sample` holds the tokens of its prompts. The means lie in `means_00`, `means_01` ..., one row for each
input and group, none of them much larger than `PART_BYTES`: a model of 8 billion parameters has 3 GB of them a task.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from gbcd.engine.calibration import TaskMeans
from gbcd.run.work import Tables

#: Bytes of means after which the next file begins.
PART_BYTES = 128 << 20

_SAMPLE = pa.schema([("prompt_id", pa.string()), ("group", pa.string()), ("tokens", pa.list_(pa.int32()))])
_MEANS = pa.schema(
    [("name", pa.string()), ("group", pa.string()), ("n_positions", pa.int32()), ("means", pa.list_(pa.float32()))]
)


def tables_from_means(means: TaskMeans) -> Tables:
    """The tables of a task's means; values are not copied until a table is written."""
    sample = {
        "prompt_id": list(means.members),
        "group": [means.groups[group] for group in means.token_groups.tolist()],
        "tokens": [[token for token in tokens if token >= 0] for tokens in means.tokens.tolist()],
    }
    parts: list[list[pa.Table]] = [[]]
    size = 0
    for name, of_groups in means.means.items():
        for group, mean in zip(means.groups, of_groups, strict=True):
            if parts[-1] and size + mean.nbytes > PART_BYTES:
                parts.append([])
                size = 0
            parts[-1].append(_row(name, group, mean))
            size += mean.nbytes
    tables = {f"means_{number:02d}": pa.concat_tables(rows) for number, rows in enumerate(parts)}
    return {"sample": pa.table(sample, schema=_SAMPLE), **tables}


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
        means=_means(shards, groups, length),
        tokens=tokens,
        token_groups=torch.tensor([groups.index(group) for group in group_of]),
        members=tuple(sample["prompt_id"].to_pylist()),
    )


def _means(
    shards: Sequence[Tables], groups: Sequence[str], length: int
) -> dict[str, Float[Tensor, "group {length} d_in"]]:
    """By name of the input; groups of shorter prompts end in zeros, which no prompt of theirs reaches."""
    found: dict[str, Tensor] = {}
    for table in (shard[name] for shard in shards for name in sorted(shard.keys() - {"sample"})):
        for row in table.to_batches(max_chunksize=1):
            name, group, n_positions = (row[column][0].as_py() for column in ("name", "group", "n_positions"))
            mean = torch.tensor(row["means"].flatten().to_numpy()).view(n_positions, -1)
            if name not in found:
                found[name] = mean.new_zeros(len(groups), length, mean.shape[1])
            found[name][groups.index(group), :n_positions] = mean
    return found


def _row(name: str, group: str, mean: Tensor) -> pa.Table:
    values = pa.array(mean.contiguous().numpy().ravel(), pa.float32())
    offsets = pa.array(np.array([0, len(values)], dtype=np.int32))
    means = pa.ListArray.from_arrays(offsets, values)
    return pa.table([[name], [group], pa.array([len(mean)], pa.int32()), means], schema=_MEANS)
