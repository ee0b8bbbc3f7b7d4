"""Which shards of a run a process computes: every n-th of them, where other processes compute the others.

`--slice i/n` says it; else the environment does, in a task of a Slurm array or on a node of SkyPilot. A process that
joins a Ray cluster reads none of this: a cluster that was started in such a task hands on the variables of that task.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from gbcd.errors import BadInput

ARRAY, NODE, CLUSTER = "SLURM_ARRAY_TASK_ID", "SKYPILOT_NODE_RANK", "RAY_ADDRESS"

INSTEAD = "--slice i/n names the shards instead, 1/1 all of them"


class Slice(NamedTuple):
    """A part of a run, which computes every `of`-th shard; other processes compute the others.

    Attributes:
        number: from 1.
        of: how many there are.
        origin: why it is this one, where nobody asked for it.
    """

    number: int
    of: int
    origin: str = ""

    def has(self, shard: int) -> bool:
        """Whether a shard is of this slice."""
        return shard % self.of == self.number - 1

    def __str__(self) -> str:
        """As on the command line: `2/8`."""
        return f"{self.number}/{self.of}"


WHOLE = Slice(1, 1)


def slice_of(text: str) -> Slice:
    """The slice that `text` names, `2/8`.

    Raises:
        BadInput: it names none.
    """
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise BadInput(f"--slice {text}: write i/n, from 1/n to n/n")
    return Slice(int(match[1]), int(match[2]))


def slice_here(environment: Mapping[str, str], n_workers: int) -> Slice:
    """The slice of a process with these variables and so many Ray workers.

    Raises:
        BadInput: the variables name none, or two.
    """
    found = [name for name in (ARRAY, NODE) if name in environment]
    if found and n_workers and environment.get(CLUSTER):
        return WHOLE._replace(origin=f"without {' and '.join(found)}: all shards go to the workers of {CLUSTER}")
    slices = [_of_array(environment) if name == ARRAY else _of_node(environment) for name in found]
    several = [one for one in slices if one.of > 1]
    if len(several) > 1:
        raise BadInput(f"{ARRAY} and {NODE} name a slice each: {INSTEAD}")
    return several[0] if several else WHOLE


def _of_array(environment: Mapping[str, str]) -> Slice:
    """By the place of a task in its array, whose ids need not begin at 1."""
    task, count, first, last, step = (
        _number(environment, f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "COUNT", "MIN", "MAX", "STEP")
    )
    ids = range(first, last + 1, max(1, step))
    if len(ids) != count or task not in ids:
        raise BadInput(
            f"{ARRAY}={task}: no task of an array of {count} from {first} to {last} in steps of {step}; ids "
            f"with gaps make none. {INSTEAD}"
        )
    return Slice(ids.index(task) + 1, count, f"from {ARRAY}")


def _of_node(environment: Mapping[str, str]) -> Slice:
    rank, count = _number(environment, NODE), _number(environment, "SKYPILOT_NUM_NODES")
    if rank >= count:
        raise BadInput(f"{NODE}={rank}: of {count} nodes the last has rank {count - 1}. {INSTEAD}")
    return Slice(rank + 1, count, f"from {NODE}")


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not re.fullmatch(r"\d{1,9}", text):
        raise BadInput(f"the variable {name} must be a whole number, and is {text!r}: {INSTEAD}")
    return int(text)
