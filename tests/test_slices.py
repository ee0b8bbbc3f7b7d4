"""What a scheduler says of a process, as the documents of Slurm and SkyPilot have it: every shard is of one slice."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gbcd.errors import BadInput
from gbcd.run.slices import WHOLE, Slice, slice_here, slice_of


def task_of_array(task: int, ids: range, **more: str) -> dict[str, str]:
    values = {"ID": task, "COUNT": len(ids), "MIN": ids[0], "MAX": ids[-1], "STEP": ids.step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()} | more


def node(rank: int | str, count: int | str) -> dict[str, str]:
    return {"SKYPILOT_NODE_RANK": str(rank), "SKYPILOT_NUM_NODES": str(count)}


def covered(slices: list[Slice], n_shards: int) -> bool:
    return all(sum(one.has(shard) for one in slices) == 1 for shard in range(n_shards))


@given(
    first=st.integers(0, 1000), count=st.integers(1, 60), step=st.integers(1, 9), beyond=st.integers(0, 8),
    n_workers=st.integers(0, 4), n_shards=st.integers(0, 200),
)  # fmt: skip
def test_an_array_covers_each_shard_once(
    first: int, count: int, step: int, beyond: int, n_workers: int, n_shards: int
) -> None:
    """Also where the last id is given as it was written: 0-15:4 has the ids 0, 4, 8, 12."""
    ids = range(first, first + count * step, step)
    written = {"SLURM_ARRAY_TASK_MAX": str(ids[-1] + beyond % step)}
    assert covered([slice_here(task_of_array(task, ids, **written), n_workers) for task in ids], n_shards)


@given(count=st.integers(1, 60), n_shards=st.integers(0, 200))
def test_nodes_cover_each_shard_once(count: int, n_shards: int) -> None:
    assert covered([slice_here(node(rank, count), 0) for rank in range(count)], n_shards)


@given(ids=st.sets(st.integers(0, 30), min_size=2).filter(lambda ids: max(ids) - min(ids) >= len(ids)))
def test_ids_with_gaps_are_refused_by_every_task(ids: set[int]) -> None:
    environment = task_of_array(0, range(min(ids), max(ids) + 1), SLURM_ARRAY_TASK_COUNT=str(len(ids)))
    for task in ids:
        with pytest.raises(BadInput, match=f"SLURM_ARRAY_TASK_ID={task}: .* --slice"):
            slice_here(environment | {"SLURM_ARRAY_TASK_ID": str(task)}, 0)


def test_who_says_so_is_known() -> None:
    assert slice_here(task_of_array(7, range(5, 9)), 2) == Slice(3, 4, "from SLURM_ARRAY_TASK_ID")
    assert slice_here(node(0, 2), 2) == Slice(1, 2, "from SKYPILOT_NODE_RANK")
    for alone in ({}, node(0, 1), task_of_array(3, range(3, 4)), node(0, 1) | task_of_array(3, range(3, 4))):
        assert slice_here(alone, 2) == WHOLE
    assert slice_here(node(0, 1) | task_of_array(3, range(3, 5)), 0).of == 2


def test_workers_of_a_cluster_compute_all_and_it_is_said() -> None:
    """A cluster that was started in a task of an array hands on that task's variables."""
    environment = task_of_array(7, range(5, 9), RAY_ADDRESS="10.0.0.1:6379")
    joined = slice_here(environment, 2)
    assert (joined.number, joined.of) == (1, 1)
    assert "SLURM_ARRAY_TASK_ID" in joined.origin
    assert "RAY_ADDRESS" in joined.origin
    assert slice_here(environment, 0).of == 4  # it computes here, and joins nothing
    assert slice_here({"RAY_ADDRESS": "10.0.0.1:6379"}, 2) == WHOLE


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"SLURM_ARRAY_TASK_ID": "3"}, "SLURM_ARRAY_TASK_COUNT"),
        (task_of_array(3, range(4), SLURM_ARRAY_TASK_STEP="one"), "SLURM_ARRAY_TASK_STEP"),
        (task_of_array(3, range(4), SLURM_ARRAY_TASK_ID=""), "SLURM_ARRAY_TASK_ID"),
        (task_of_array(4, range(4)), "SLURM_ARRAY_TASK_ID"),
        (node(0, ""), "SKYPILOT_NUM_NODES"),
        (node("-1", 2), "SKYPILOT_NODE_RANK"),
        (node(2, 2), "SKYPILOT_NODE_RANK"),
        (node(0, 2) | task_of_array(0, range(2)), "SLURM_ARRAY_TASK_ID and SKYPILOT_NODE_RANK"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(environment: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput, match=f"{named}.* --slice"):
        slice_here(environment, 0)


def test_a_slice_is_written_as_a_fraction() -> None:
    assert slice_of("2/3") == Slice(2, 3)
    for nonsense in ("0/3", "4/3", "1", "1/0", "-1/2", "1/2/3", "/", ""):
        with pytest.raises(BadInput, match="--slice"):
            slice_of(nonsense)
