"""Named places where a process can be made to die, so that tests can prove that nothing is lost there.

`GBCD_FAILPOINT=after_file:3` ends the process, as `kill -9` would, when it reaches `after_file` in its work on shard 3;
`after_file:3:1` only in the first attempt at it. In `gbcd compact` the number is that of the group. Unset, which is
always except in tests, nothing happens.
"""

from __future__ import annotations

import os
from typing import Literal

VARIABLE = "GBCD_FAILPOINT"

Place = Literal["before_write", "mid_file", "after_file", "after_commit", "mid_sweep"]

#: Exit status of a process that ended at a failpoint.
STATUS = 86


def reached(place: Place, shard: int, attempt: int) -> None:
    """End this process at once if the environment asks for it here."""
    if is_set(place, shard, attempt):
        os._exit(STATUS)


def is_set(place: Place, shard: int, attempt: int) -> bool:
    """True if the environment asks for an end at `place` in the `attempt`-th try (from 1) at `shard`."""
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return False
    name, number, *last = wanted.split(":")
    return name == place and int(number) == shard and (not last or attempt <= int(last[0]))
