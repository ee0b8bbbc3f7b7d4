"""The mean inputs of a task as tables, and back.

`sample` holds the tokens of the sample's prompts. The means lie in `means_00`, `means_01` ..., one row for each input
and group, none of them much larger than `PART_BYTES`: a model of 8 billion parameters has 3 GB of them a task.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
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


def means_from_tables(tables: Tables) -> TaskMeans:
    """Read what `tables_from_means` wrote."""
    sample = tables["sample"]
    group_of = sample["group"].to_pylist()
    groups = tuple(sorted(set(group_of)))
    by_name: dict[str, dict[str, Tensor]] = {}
    for table_name in sorted(tables.keys() - {"sample"}):
        for row in tables[table_name].to_batches(max_chunksize=1):
            name, group, n_positions = (row[column][0].as_py() for column in ("name", "group", "n_positions"))
            values = row["means"].flatten().to_numpy()
            by_name.setdefault(name, {})[group] = torch.tensor(values).view(n_positions, -1)
    lengths = [len(tokens) for tokens in sample["tokens"].to_pylist()]
    tokens = torch.full((len(lengths), max(lengths)), -1)
    for number, row in enumerate(sample["tokens"].to_pylist()):
        tokens[number, : len(row)] = torch.tensor(row)
    return TaskMeans(
        groups=groups,
        means={name: torch.stack([means[group] for group in groups]) for name, means in by_name.items()},
        tokens=tokens,
        token_groups=torch.tensor([groups.index(group) for group in group_of]),
        members=tuple(sample["prompt_id"].to_pylist()),
    )


def _row(name: str, group: str, mean: Tensor) -> pa.Table:
    values = pa.array(mean.contiguous().numpy().ravel(), pa.float32())
    offsets = pa.array(np.array([0, len(values)], dtype=np.int32))
    means = pa.ListArray.from_arrays(offsets, values)
    return pa.table([[name], [group], pa.array([len(mean)], pa.int32()), means], schema=_MEANS)
