"""What a run gives up, with the reason: a whole shard, or single prompts of one.

A shard that keeps failing is left without a commit. Where single prompts make it fail (`sifting.py`) it is committed
with the rows of all, and theirs hold no values. Either way `quarantine/00012.json` says what and why, and is written
before such a commit: who looks for what to try again needs no more than the list of these records. A record can outlast
what it tells of, because its writer was killed or another driver was luckier; the commits decide.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from gbcd.engine.tables import FAILED
from gbcd.run.commits import read_commits, read_records, record_ids
from gbcd.run.store import Store

#: Prompts that one line names.
NAMED = 5


class Quarantine(BaseModel):
    """Why a shard, or some of its prompts, were given up; the next run tries them again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shard: int
    attempts: int
    prompts: dict[str, str] = {}
    """The reason for each prompt whose rows hold no values; empty where the whole shard is missing."""
    reason: str
    """That of the whole shard, or of the first of its prompts."""
    at: datetime

    @property
    def in_words(self) -> str:
        """One line: what is missing, and why."""
        if not self.prompts:
            return f"shard {self.shard} was given up after {self.attempts} failures: {first_line(self.reason)}"
        named = [f"{prompt} ({first_line(reason)})" for prompt, reason in list(self.prompts.items())[:NAMED]]
        more = f" and {len(self.prompts) - NAMED} more" if len(self.prompts) > NAMED else ""
        return f"shard {self.shard} has no values for {', '.join(named)}{more}"


def first_line(text: str) -> str:
    """Of a message, the line that says most."""
    return text.strip().split("\n", 1)[0]


def quarantine_path(shard: int) -> str:
    """Where it is recorded that a shard, or some of its prompts, were given up."""
    return f"quarantine/{shard:05d}.json"


def record_quarantine(store: Store, record: Quarantine) -> None:
    """Write it."""
    store.write(quarantine_path(record.shard), record.model_dump_json(indent=1).encode())


def quarantined_ids(store: Store) -> set[int]:
    """Shards of which there is a record, whether or not it still holds."""
    return record_ids(store, "quarantine")


def quarantined(store: Store, shards: Iterable[int] | None = None) -> list[Quarantine]:
    """Records that still hold, in order of shard; all, or those of `shards`.

    Raises:
        StorageError: a record is damaged.
    """
    wanted = sorted(quarantined_ids(store) if shards is None else set(shards))
    records = read_records(store, [quarantine_path(shard) for shard in wanted], Quarantine)
    commits = {commit.shard: commit for commit in read_commits(store, [record.shard for record in records])}

    def holds(record: Quarantine) -> bool:
        commit = commits.get(record.shard)
        return not record.prompts if commit is None else FAILED in commit.statuses

    return [record for record in records if holds(record)]
