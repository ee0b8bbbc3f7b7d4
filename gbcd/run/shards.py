"""The plan: what a run will compute, fixed before it starts and never changed.

`plan.json` names the study as far as it leaves a mark on the numbers, the versions and hashes of everything that goes
in, and the shards. A shard is a range of rows of the stored prompts (see `inputs.py`), which were shuffled within
their task, so that each shard is a random draw from it. How many workers there are, and which of them computes what,
is not in the plan and cannot change a row.

The plan is created exclusively. Whoever comes later with the same study resumes it; whoever comes with another is
refused and told what differs.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from gbcd.errors import BadInput
from gbcd.run.store import Store

PLAN = "plan.json"

#: Raised with every change of the plan or of the tables that older readers would misread.
FORMAT = 1


class Settings(BaseModel):
    """The part of a study that leaves a mark on the numbers, with everything `auto` resolved."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    tasks: tuple[str, ...]
    prompts: str | None = None
    """A prompt file; None where prompts are drawn from tasks."""
    prompts_per_task: int | None
    """None where there is a prompt file, which is run whole."""
    wrong_answers: tuple[str, ...]
    seed: int
    calibration_prompts: int
    centering: Literal["position", "template"]
    reference: Literal["auto", "counterfactual", "partner"] = "auto"
    rules: Literal["plain", "relp", "gim"] = "plain"
    edges: bool = False
    only_solved: bool = False
    bos: Literal["auto", "always", "never"] = "auto"
    embedding_model: str | None = None
    """None where no wrong answer needs it."""
    device: str
    dtype: str
    shard_size: int
    batch_size: int
    threads: int


class Identity(BaseModel):
    """What two runs must share for their rows to lie in one table."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    study: Settings
    versions: dict[str, str]
    """Of gbcd and of the libraries that compute."""
    hashes: dict[str, str]
    """SHA-256 of `model` (weights), `tokenizer`, the source of each task's prompts (`prompts:ioi`), and files of
    definitions (`definitions:mine.py`)."""

    def differences(self, other: Identity) -> list[str]:
        """One line for each value in which `other` differs: `study.seed: 0 -> 1`."""
        old, new = _flat(self.model_dump()), _flat(other.model_dump())
        return [
            f"{key}: {old.get(key)} -> {new.get(key)}" for key in sorted({*old, *new}) if old.get(key) != new.get(key)
        ]


class Shard(BaseModel):
    """Rows `start` up to, not including, `stop` of the stored prompts; all of one task."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: int
    task: str
    start: int
    stop: int

    @property
    def n_prompts(self) -> int:
        """Number of prompts."""
        return self.stop - self.start


class StoredFile(BaseModel):
    """A file that a record vouches for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    bytes: int
    sha256: str
    rows: int


class Plan(BaseModel):
    """Everything that a worker needs to know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    identity: Identity
    inputs: StoredFile
    """The prompts, shuffled, one row group a shard."""
    prompts_sha256: str
    """Hash of the prompts themselves, however they are stored."""
    shards: tuple[Shard, ...]

    @property
    def study(self) -> Settings:
        """What is computed."""
        return self.identity.study

    @property
    def n_prompts(self) -> int:
        """Number of prompts over all shards."""
        return sum(shard.n_prompts for shard in self.shards)


def cut(task: str, n_prompts: int, shard_size: int, first_id: int, first_row: int) -> list[Shard]:
    """Shards of one task, in order; the last may be smaller."""
    starts = range(0, n_prompts, shard_size)
    return [
        Shard(
            id=first_id + number,
            task=task,
            start=first_row + start,
            stop=first_row + min(start + shard_size, n_prompts),
        )
        for number, start in enumerate(starts)
    ]


def read_plan(store: Store) -> Plan:
    """The plan of a results folder.

    Raises:
        BadInput: there is none, or this version cannot read it.
    """
    try:
        raw = store.read(PLAN)
    except FileNotFoundError:
        raise BadInput(
            f"{store.location!r} holds no {PLAN}: it is not a results folder, or nothing is planned there yet"
        ) from None
    try:
        return Plan.model_validate_json(raw)
    except ValidationError as error:
        raise BadInput(
            f"{store.location}/{PLAN} was not written by this version of gbcd, or it is damaged "
            f"({error.error_count()} fields do not fit): use the version that wrote it, or another folder"
        ) from error


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
