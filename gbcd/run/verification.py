"""Reading everything back: does the folder hold every prompt exactly once, and every byte as it was committed?

Sums are compared with the commit records, tables are decoded and held against the stored prompts of their shard, and
the stored prompts against the plan. Shards that were merged (`merged.py`) are read where readers find them, and bad or
good together. `forget` takes back the records of bad shards, so that the next run computes exactly those again.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import MappingProxyType
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gbcd.engine.tables import FAILED, ShardTables
from gbcd.run.commits import Commit, commit_path, committed_ids, read_commits, read_verified
from gbcd.run.inputs import Inputs
from gbcd.run.merged import Piece, groups, merged_ids, merged_path, read_merged, shard_rows
from gbcd.run.results import COMPONENTS_FILE, read_components
from gbcd.run.shard_files import Contents, Expected, UnsoundShardError, check, decode
from gbcd.run.shards import Plan, read_plan
from gbcd.run.store import StorageError, Store
from gbcd.run.workers import CALIBRATION_FILE

#: Shards, or merged groups, that are read at a time.
READERS = 4


class Verification(NamedTuple):
    """What was found.

    Attributes:
        plan: what should be there.
        common: what is wrong with the files that all shards share; by file.
        bad: what is wrong with committed shards; by shard.
        failed: prompts whose rows hold no values because the engine raised on them; by shard.
        missing: shards without a commit.
        leftovers: files that no record names: of attempts that never committed, or replaced; harmless.
        n_bytes: read and compared.
    """

    plan: Plan
    common: dict[str, str]
    bad: dict[int, str]
    failed: dict[int, tuple[str, ...]]
    missing: tuple[int, ...]
    leftovers: int
    n_bytes: int

    @property
    def is_sound(self) -> bool:
        """True if every prompt is there exactly once, none was given up, and nothing is damaged."""
        return not (self.common or self.bad or self.failed or self.missing)


def verify(out: str) -> Verification:
    """Read everything in `out` and compare.

    Raises:
        BadInput: `out` holds no plan.
        StorageError: it cannot be read.
    """
    store = Store(out)
    plan = read_plan(store)
    portions = _portions(store, plan)
    common = dict(_common_problems(store, plan))
    bad: dict[int, str] = {}
    failed: dict[int, tuple[str, ...]] = {}
    paths: set[str] = set()
    n_bytes = 0
    if plan.inputs.path not in common and COMPONENTS_FILE not in common:
        n_components = len(read_components(store)) if portions else 0
        examiner = _Examiner(store, plan, n_components, _calibration(store) if portions else "")
        with ThreadPoolExecutor(READERS) as pool:
            for portion, finding in zip(portions, pool.map(examiner.examine, portions), strict=True):
                n_bytes += finding.n_bytes
                paths |= finding.paths
                failed |= finding.failed
                if finding.problem:
                    bad |= dict.fromkeys(portion.shards, finding.problem)
    committed = {shard for portion in portions for shard in portion.shards}
    missing = tuple(shard.id for shard in plan.shards if shard.id not in committed)
    leftovers = sum(entry.path not in paths for kind in Contents._fields for entry in store.list(kind))
    return Verification(plan, common, bad, dict(sorted(failed.items())), missing, leftovers, n_bytes)


def forget(out: str, verification: Verification) -> None:
    """Take back what is damaged or without values, except the stored prompts; a run of the same study computes it."""
    store = Store(out)
    there = merged_ids(store)
    merged = {group: shards for group, shards in groups(verification.plan).items() if group in there}
    for group, shards in merged.items():
        if verification.bad.keys() & set(shards):
            _dissolve(store, group, shards)
    for shard in {*verification.bad, *verification.failed} - {shard for shards in merged.values() for shard in shards}:
        store.delete(commit_path(shard))
    for path in verification.common:
        if path in (COMPONENTS_FILE, CALIBRATION_FILE):
            store.delete(path)


class _Portion(NamedTuple):
    """What is examined at a time: a merged group, or one shard."""

    group: int | None
    shards: tuple[int, ...]


class _Finding(NamedTuple):
    problem: str | None
    n_bytes: int = 0
    paths: frozenset[str] = frozenset()
    failed: Mapping[int, tuple[str, ...]] = MappingProxyType({})


def _portions(store: Store, plan: Plan) -> list[_Portion]:
    there = merged_ids(store)
    merged = [_Portion(group, shards) for group, shards in groups(plan).items() if group in there]
    covered = {shard for portion in merged for shard in portion.shards}
    return [*merged, *(_Portion(None, (shard,)) for shard in sorted(committed_ids(store) - covered))]


def _dissolve(store: Store, group: int, shards: tuple[int, ...]) -> None:
    """Give up the files of a group. Shards whose own files are still there and whole go back to those."""
    for shard in shards:
        try:
            for commit in read_commits(store, [shard]):
                for file in commit.files.values():
                    read_verified(store, file)
        except (UnsoundShardError, StorageError):
            store.delete(commit_path(shard))
    store.delete(merged_path(group))


class _Examiner:
    """Examines what is committed."""

    def __init__(self, store: Store, plan: Plan, n_components: int, calibration: str) -> None:
        self._store, self._plan = store, plan
        self._n_components, self._calibration = n_components, calibration

    def examine(self, portion: _Portion) -> _Finding:
        """Read it and compare it with everything that is known of it."""
        if portion.shards[-1] >= len(self._plan.shards):
            return _Finding("the plan has no such shard")
        try:
            piece = self._piece(portion)
            contents = Contents(*(read_verified(self._store, piece.files[kind]) for kind in Contents._fields))
            whole = decode(contents)
            for kind, table in whole._asdict().items():
                if table.num_rows != piece.files[kind].rows:
                    raise UnsoundShardError(
                        f"{kind} has {table.num_rows} rows, committed with {piece.files[kind].rows}"
                    )
            failed: dict[int, tuple[str, ...]] = {}
            for commit, tables in zip(piece.commits, shard_rows(piece, whole), strict=True):
                self._check(commit, tables)
                if prompts := _failed(tables):
                    failed[commit.shard] = prompts
        except (UnsoundShardError, StorageError, KeyError) as error:
            return _Finding(str(error))
        paths = frozenset(file.path for file in piece.files.values())
        return _Finding(None, sum(len(content) for content in contents), paths, failed)

    def _piece(self, portion: _Portion) -> Piece:
        commits = tuple(read_commits(self._store, portion.shards))
        if (named := tuple(commit.shard for commit in commits)) != portion.shards:
            raise UnsoundShardError(f"the records of shards {portion.shards} are those of shards {named}")
        if portion.group is None:
            return Piece(commits[0].files, commits)
        piece = read_merged(self._store, portion.group)
        if piece is None or piece.commits != commits:
            raise UnsoundShardError(f"{merged_path(portion.group)} was not made from the records of its shards")
        return piece

    def _check(self, commit: Commit, tables: ShardTables) -> None:
        if commit.calibration != self._calibration:
            raise UnsoundShardError("computed against another calibration than the other shards")
        shard = self._plan.shards[commit.shard]
        ids = Inputs(self._store, self._plan).ids(shard)
        check(shard, tables, Expected(ids, self._plan.study.wrong_answers, self._n_components))


def _failed(tables: ShardTables) -> tuple[str, ...]:
    rows = tables.prompts.filter(pc.field("status") == FAILED)
    return tuple(dict.fromkeys(rows["prompt_id"].to_pylist()))


def _common_problems(store: Store, plan: Plan) -> Iterator[tuple[str, str]]:
    if problem := _inputs_problem(store, plan):
        yield plan.inputs.path, problem
    if not committed_ids(store):
        return
    try:
        read_components(store)
    except (FileNotFoundError, pa.ArrowException, OSError, KeyError, TypeError) as error:
        yield COMPONENTS_FILE, f"it cannot be read: {error}"
    try:
        if _sha256(store.read(CALIBRATION_FILE)) != _calibration(store):
            yield CALIBRATION_FILE, "it is not the one that shards were computed against"
    except FileNotFoundError:
        yield CALIBRATION_FILE, "it is gone"


def _calibration(store: Store) -> str:
    """Hash of the calibration that most commits name; one that cannot be read is reported with its shard."""
    named = Counter[str]()
    for shard in committed_ids(store):
        with suppress(StorageError):
            named.update(commit.calibration for commit in read_commits(store, [shard]))
    return named.most_common(1)[0][0] if named else ""


def _inputs_problem(store: Store, plan: Plan) -> str | None:
    """The stored prompts: all bytes, and every identifier once."""
    try:
        content = store.read(plan.inputs.path)
    except FileNotFoundError:
        return "it is gone, and with it the prompts; start again in another folder"
    if _sha256(content) != plan.inputs.sha256:
        return "it does not have the checksum that is in the plan; start again in another folder"
    ids = pq.read_table(pa.BufferReader(content), columns=["id"]).column("id")
    distinct = len(ids.unique())
    if distinct != len(ids) or distinct != plan.n_prompts:
        return f"it holds {distinct:,} different prompts in {len(ids):,} rows, and the plan {plan.n_prompts:,}"
    return None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
