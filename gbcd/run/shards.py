"""The plan: what a run will compute, fixed before it starts and never changed.

`plan.json` holds the study with all that it left open settled, the versions and hashes of everything that goes in, and
the shards. Batches are cut from the study's order of prompts, and a shard is a range of whole batches, rows `start` to
`stop` of the stored prompts (see `inputs.py`); so neither shards nor workers change a row.

The plan is created exclusively. Whoever comes later with the same study resumes it; whoever comes with another is
refused and told what differs. What a study is, is a matter of content: hashes count, and not where files lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, cast

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from gbcd.engine.proof import SelfCheck
from gbcd.errors import BadInput
from gbcd.printing import counted
from gbcd.run.store import Store
from gbcd.study import Study

PLAN = "plan.json"

#: Raised with every change of the plan or of the tables that older readers would misread.
FORMAT: Final = 2

#: Fields of a study that say where things lie; their hashes count instead.
_PLACES = {"model", "prompts", "definitions", "embedding_model", "out"}

#: Prompts of a shard of the calibration sample, at least; a 135 M model takes four seconds for them on one core.
MEANS_SHARD = 64

#: Fields of `compute` that change no row.
_CAPACITY = {"workers", "gpus_per_worker"}


class Record(BaseModel):
    """What is stored as JSON: read back strictly, and never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Shard(Record):
    """Rows `start` up to, not including, `stop` of the stored prompts; all of one task."""

    id: int
    task: str
    start: int
    stop: int

    @property
    def n_prompts(self) -> int:
        """Number of prompts."""
        return self.stop - self.start


class MeansShard(Record):
    """Prompts of a task's calibration sample that are averaged in one piece: those of `groups`."""

    task: str
    groups: tuple[str, ...]
    n_prompts: int


class StoredFile(Record):
    """A file that a record vouches for."""

    path: str
    bytes: int
    sha256: str
    rows: int


class Sources(Record):
    """What goes into a study besides its prompts, by content.

    Attributes:
        versions: of gbcd and of the libraries that compute.
        hashes: SHA-256 of `model` (weights), `tokenizer`, the source of each task's prompts (`prompts:ioi`), and of the
            `embedding_model` where one is used.
        definitions: files of definitions, path by SHA-256.
        facts: of the model, in words: tokens that are added to each text, a quantisation.
    """

    versions: dict[str, str]
    hashes: dict[str, str]
    definitions: dict[str, str] = {}
    facts: dict[str, str] = {}


class Plan(Record):
    """Everything that a worker needs to know.

    Attributes:
        format: of this record.
        study: what is computed, with nothing left open.
        sources: what it is computed from.
        inputs: the prompts with their tokens, one row group a shard.
        self_check: how far the decoder was from the library on this model.
        means: shards of the calibration samples, task after task.
        shards: in order of their rows.
    """

    format: Literal[2] = FORMAT
    study: Study
    sources: Sources
    inputs: StoredFile
    self_check: SelfCheck
    means: tuple[MeansShard, ...]
    shards: tuple[Shard, ...]

    @model_validator(mode="after")
    def _covers_all_rows(self) -> Plan:
        edges = [0, *(shard.stop for shard in self.shards)]
        found = [(shard.id, shard.start) for shard in self.shards]
        if found != list(enumerate(edges[:-1])) or edges[-1] != self.inputs.rows or sorted(set(edges)) != edges:
            raise ValueError("the shards do not cover the rows of the prompts, each once")
        return self

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in order; `prompts` where the prompts come from a file."""
        return tuple(dict.fromkeys(shard.task for shard in self.shards))

    @property
    def n_prompts(self) -> int:
        """Number of prompts over all shards."""
        return self.inputs.rows

    def n_prompts_of(self, shards: Iterable[int]) -> int:
        """Number of prompts of `shards`, by their numbers."""
        return sum(self.shards[shard].n_prompts for shard in shards)

    @property
    def batch_size(self) -> int:
        """Prompts per forward pass."""
        return cast(int, self.study.compute.batch_size)

    @property
    def centering(self) -> Literal["template", "position"]:
        """What prompts are centred by."""
        return cast(Any, self.study.centering)

    def batches(self, shard: Shard) -> list[slice]:
        """Where the batches of `shard` lie among its prompts."""
        starts = range(0, shard.n_prompts, self.batch_size)
        return [slice(start, min(start + self.batch_size, shard.n_prompts)) for start in starts]

    def differences(self, study: Study, sources: Sources) -> list[str]:
        """One line for each value in which another study differs, its own keys first: `seed: 0 -> 1`."""
        old, new = _content(self.study, self.sources), _content(study, sources)
        keys = sorted({*old, *new}, key=lambda key: (key.startswith(("hashes.", "versions.")), key))
        found = [f"{key}: {_said(old, key)} -> {_said(new, key)}" for key in keys if old.get(key) != new.get(key)]
        if self.sources.definitions.keys() != sources.definitions.keys():
            found.append(f"definitions: {_named(self.sources)} -> {_named(sources)}")
        return found


def cut(sizes: Mapping[str, int], shard_size: int) -> tuple[Shard, ...]:
    """Shards of `shard_size` rows for each task and its number of prompts, in order; the last of a task may be smaller.

    A shard begins with a batch where `shard_size` is a multiple of the batch size.
    """
    shards: list[Shard] = []
    first = 0
    for task, n_prompts in sizes.items():
        for start in range(0, n_prompts, shard_size):
            stop = min(start + shard_size, n_prompts)
            shards.append(Shard(id=len(shards), task=task, start=first + start, stop=first + stop))
        first += n_prompts
    return tuple(shards)


def cut_means(task: str, sizes: Mapping[str, int]) -> Iterator[MeansShard]:
    """Shards of whole groups, of about `MEANS_SHARD` prompts, for the number of prompts of each group in the sample.

    They do not depend on the number of workers, and neither do the means.
    """
    groups: list[str] = []
    n_prompts = 0
    for group in sorted(sizes):
        groups.append(group)
        n_prompts += sizes[group]
        if n_prompts >= MEANS_SHARD:
            yield MeansShard(task=task, groups=tuple(groups), n_prompts=n_prompts)
            groups, n_prompts = [], 0
    if groups:
        yield MeansShard(task=task, groups=tuple(groups), n_prompts=n_prompts)


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
            f"{store.location}/{PLAN} was not written by this version of gbcd, or it is damaged or edited "
            f"({counted(error.error_count(), 'problem')}): use the version that wrote it, or another folder"
        ) from error


def _content(study: Study, sources: Sources) -> dict[str, Any]:
    """What two runs must share for their rows to lie in one table."""
    fields = study.model_dump(exclude=_PLACES | {"compute"})
    compute = study.compute.model_dump(exclude=_CAPACITY)
    return {
        **fields,
        **{f"compute.{name}": value for name, value in compute.items()},
        **{f"versions.{name}": version for name, version in sources.versions.items()},
        **{f"hashes.{name}": sha256 for name, sha256 in sources.hashes.items()},
    }


def _said(content: Mapping[str, Any], key: str) -> str:
    """A value as people write it: `ioi, induction` for a tuple, twelve digits of a hash, `none` for no value."""
    value = content.get(key)
    words = cast("tuple[object, ...]", value if isinstance(value, tuple) else () if value is None else (value,))
    return ", ".join(str(word)[:12] if key.startswith("hashes.") else str(word) for word in words) or "none"


def _named(sources: Sources) -> str:
    files = sorted(f"{Path(path).name} ({sha256[:12]})" for sha256, path in sources.definitions.items())
    return ", ".join(files) or "none"
