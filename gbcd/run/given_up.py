"""Shards that were tried three times and failed each time: `given_up/00012.json` says why.

The record is created exclusively and stays. A later run tries the shard again, and once there is a commit the record
tells of the past: readers ask for those that have none.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict

from gbcd.run.commits import committed_ids, read_records, record_ids
from gbcd.run.store import Store


class GivenUp(BaseModel):
    """Why a shard is missing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shard: int
    attempts: int
    reason: str
    at: datetime

    @property
    def message(self) -> str:
        """One line: what is missing, and why."""
        why = self.reason.strip().splitlines()[0]
        return f"shard {self.shard} failed {self.attempts} times and was left out: {why}"


def record(store: Store, given_up: GivenUp) -> None:
    """Write it, unless the shard was given up before."""
    store.create(_path(given_up.shard), given_up.model_dump_json(indent=1).encode())


def given_up(store: Store) -> list[GivenUp]:
    """Shards that were given up and are not committed, in order.

    Raises:
        StorageError: a record is damaged.
    """
    missing = record_ids(store, "given_up") - committed_ids(store)
    return read_records(store, [_path(shard) for shard in sorted(missing)], GivenUp)


def _path(shard: int) -> str:
    return f"given_up/{shard:05d}.json"
