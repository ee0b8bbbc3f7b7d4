"""Reading everything back: does the folder hold every prompt exactly once, and every byte as it was committed?

Sums are compared with the commit records, tables are decoded and held against the stored prompts of their shard, and
the stored prompts against the plan. `forget` takes back the records of bad shards, so that the next run computes
exactly those again.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from gbcd.job.commits import Commit, commit_path, committed_ids, read_commits
from gbcd.job.inputs import Inputs
from gbcd.job.results import COMPONENTS_FILE, read_components
from gbcd.job.shard_files import Contents, Expected, UnsoundShardError, check, decode
from gbcd.job.shards import Plan, Shard, StoredFile, read_plan
from gbcd.job.store import StorageError, Store
from gbcd.job.workers import CALIBRATION_FILE

#: Shards that are read at a time.
READERS = 4


class Verification(NamedTuple):
    """What was found.

    Attributes:
        plan: what should be there.
        common: what is wrong with the files that all shards share; by file.
        bad: what is wrong with committed shards; by shard.
        missing: shards without a commit.
        leftovers: files of attempts that never committed; harmless.
        n_bytes: read and compared.
    """

    plan: Plan
    common: dict[str, str]
    bad: dict[int, str]
    missing: tuple[int, ...]
    leftovers: int
    n_bytes: int

    @property
    def is_sound(self) -> bool:
        """True if every prompt is there exactly once and nothing is damaged."""
        return not (self.common or self.bad or self.missing)


def verify(out: str) -> Verification:
    """Read everything in `out` and compare.

    Raises:
        BadInput: `out` holds no plan.
        StorageError: it cannot be read.
    """
    store = Store(out)
    plan = read_plan(store)
    common = dict(_common_problems(store, plan))
    ids = sorted(committed_ids(store))
    bad: dict[int, str] = {}
    n_bytes = 0
    if plan.inputs.path not in common and COMPONENTS_FILE not in common:
        n_components = len(read_components(store)) if ids else 0
        examiner = _Examiner(store, plan, n_components, _calibration(store) if ids else "")
        with ThreadPoolExecutor(READERS) as pool:
            for shard, finding in zip(ids, pool.map(examiner.examine, ids), strict=True):
                n_bytes += finding.n_bytes
                if finding.problem:
                    bad[shard] = finding.problem
    missing = tuple(shard.id for shard in plan.shards if shard.id not in set(ids))
    return Verification(plan, common, bad, missing, _leftovers(store, set(ids) - bad.keys()), n_bytes)


def forget(out: str, verification: Verification) -> None:
    """Take back what is damaged, except the prompts, so that a run of the same study computes it again."""
    store = Store(out)
    for shard in verification.bad:
        store.delete(commit_path(shard))
    for path in verification.common:
        if path in (COMPONENTS_FILE, CALIBRATION_FILE):
            store.delete(path)


class _Finding(NamedTuple):
    problem: str | None
    n_bytes: int


class _Examiner:
    """Examines committed shards."""

    def __init__(self, store: Store, plan: Plan, n_components: int, calibration: str) -> None:
        self._store, self._plan = store, plan
        self._n_components, self._calibration = n_components, calibration

    def examine(self, shard: int) -> _Finding:
        """Read one committed shard and compare it with everything that is known of it."""
        if shard >= len(self._plan.shards):
            return _Finding("the plan has no such shard", 0)
        try:
            (commit,) = read_commits(self._store, [shard])
            contents = Contents(*(self._verified(commit.files[kind]) for kind in Contents._fields))
            self._check(self._plan.shards[shard], commit, contents)
        except (UnsoundShardError, StorageError, KeyError) as error:
            return _Finding(str(error), 0)
        return _Finding(None, sum(len(content) for content in contents))

    def _verified(self, file: StoredFile) -> bytes:
        try:
            content = self._store.read(file.path)
        except FileNotFoundError:
            raise UnsoundShardError(f"{file.path} is gone") from None
        if len(content) != file.bytes:
            raise UnsoundShardError(f"{file.path} has {len(content)} bytes, committed with {file.bytes}")
        if _sha256(content) != file.sha256:
            raise UnsoundShardError(f"{file.path} does not have the checksum that it was committed with")
        return content

    def _check(self, shard: Shard, commit: Commit, contents: Contents) -> None:
        if commit.shard != shard.id:
            raise UnsoundShardError(f"{commit_path(shard.id)} is the record of shard {commit.shard}")
        if commit.calibration != self._calibration:
            raise UnsoundShardError("computed against another calibration than the other shards")
        tables = decode(contents)
        for kind, table in tables._asdict().items():
            if table.num_rows != commit.files[kind].rows:
                raise UnsoundShardError(f"{kind} has {table.num_rows} rows, committed with {commit.files[kind].rows}")
        ids = Inputs(self._store, self._plan).ids(shard)
        check(shard, tables, Expected(ids, self._plan.study.wrong_answers, self._n_components))


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


def _leftovers(store: Store, shards: set[int]) -> int:
    wanted = {file.path for commit in read_commits(store, shards) for file in commit.files.values()}
    return sum(entry.path not in wanted for kind in Contents._fields for entry in store.list(kind))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
