"""Reading everything back: does the folder hold every prompt exactly once, and every byte as it was committed?

Sums are compared with the commit records, tables are decoded and held against the stored prompts of their shard, and
the stored prompts against the plan. `forget` deletes the commits of bad shards, so that the next run computes exactly
those again; nothing else ever deletes a commit.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from gbcd.engine.tables import FAILED
from gbcd.errors import BadInput
from gbcd.run.commits import Commit, commit_path, committed_ids, decode, read_record, read_verified
from gbcd.run.inputs import LOST
from gbcd.run.norms_work import MEANS, MEANS_KEY, NORMS, check_norms, means_sha256
from gbcd.run.results import COMPONENTS_FILE, failed_prompts, read_components
from gbcd.run.shards import Plan, read_plan
from gbcd.run.store import StorageError, Store
from gbcd.run.work import Tables, UnsoundShardError

#: Where evaluations lie.
EVALUATIONS = "evaluation"

#: Files that are read at a time.
READERS = 8

Check = Callable[[int, Tables], None]
"""Refuses the tables of a shard, by `UnsoundShardError`."""


class StageFindings(NamedTuple):
    """What was found in the commits of one stage.

    Attributes:
        commits: records that are sound, and so are their files; by shard.
        bad: what is wrong, by shard.
        missing: shards without a commit.
        orphans: files that no record names.
    """

    commits: dict[int, Commit]
    bad: dict[int, str]
    missing: set[int]
    orphans: int


class Verification(NamedTuple):
    """What was found.

    Attributes:
        plan: what should be there.
        common: what is wrong with the files that all shards share; by file.
        stages: by folder: the means, the shards of prompts (""), and evaluations; what these lack, the same
            `gbcd evaluate` computes.
        failed: prompts without values, with the reason.
    """

    plan: Plan
    common: dict[str, str]
    stages: dict[str, StageFindings]
    failed: dict[str, str]

    @property
    def is_sound(self) -> bool:
        """True if every prompt is there exactly once, none failed, and nothing is damaged."""
        return not (self.bad or self.failed or any(stage.missing for stage in self.stages.values()))

    @property
    def has_prompts(self) -> bool:
        """True if the stored prompts are as planned, without which nothing can be computed again."""
        return self.plan.inputs.path not in self.common

    @property
    def orphans(self) -> int:
        """Files that no record names: of attempts that never committed; harmless."""
        return sum(stage.orphans for stage in self.stages.values())

    @property
    def n_bytes(self) -> int:
        """Read and compared."""
        commits = [commit for stage in self.stages.values() for commit in stage.commits.values()]
        return sum(file.bytes for commit in commits for file in commit.files.values())

    @property
    def bad(self) -> list[tuple[str, str]]:
        """What is damaged, and how."""
        found = [*self.common.items()]
        for folder, stage in self.stages.items():
            for shard, problem in stage.bad.items():
                where = f"{folder}, shard {shard}" if folder else f"shard {shard}"
                found.append((where, problem))
        return found


def verify(out: str) -> Verification:
    """Read everything in `out` and compare.

    Raises:
        BadInput: `out` holds no plan.
        StorageError: it cannot be read.
    """
    store = Store(out)
    plan = read_plan(store)
    common = dict(_common_problems(store, plan))
    means = verify_stage(store.below(MEANS), len(plan.means))
    check = None if common else _norms_check(store, plan, means.commits)
    norms = verify_stage(store, len(plan.shards), check)
    below = (re.fullmatch(r"(.+)/commits/\d+\.json", entry.path) for entry in store.list(EVALUATIONS))
    evaluations = {folder: verify_stage(store.below(folder)) for folder in sorted({one[1] for one in below if one})}
    stages = {MEANS: means, NORMS: norms, **evaluations}
    return Verification(plan, common, stages, failed_prompts(store, [*norms.commits.values()]))


def forget(out: str, verification: Verification) -> None:
    """Delete the commits of what is damaged or failed; a run of the same study computes it again."""
    store = Store(out)
    for folder, stage in verification.stages.items():
        failed = {shard for shard, commit in stage.commits.items() if FAILED in commit.statuses}
        for shard in failed | stage.bad.keys():
            store.below(folder).delete(commit_path(shard))
    if COMPONENTS_FILE in verification.common:
        store.delete(COMPONENTS_FILE)


def verify_stage(store: Store, n_shards: int | None = None, check: Check | None = None) -> StageFindings:
    """Read back the commits and files of the stage in `store`; without `n_shards` nothing can be missing.

    Raises:
        StorageError: the folder cannot be listed.
    """
    shards = sorted(committed_ids(store))
    with ThreadPoolExecutor(READERS) as pool:
        examined = dict(zip(shards, pool.map(lambda one: _examined(store, one, n_shards, check), shards), strict=True))
    commits = {shard: found for shard, found in examined.items() if isinstance(found, Commit)}
    bad = {shard: found for shard, found in examined.items() if isinstance(found, str)}
    named = {file.path for commit in commits.values() for file in commit.files.values()}
    orphans = [
        entry.path
        for kind in {path.split("/")[0] for path in named}
        for entry in store.list(kind)
        if entry.path not in named and int(entry.path.split("/")[-1].split(".")[0]) not in bad
    ]
    return StageFindings(commits, bad, set(range(n_shards or 0)) - examined.keys(), len(orphans))


def _examined(store: Store, shard: int, n_shards: int | None, check: Check | None) -> Commit | str:
    """The commit of a shard, or what is wrong with it or its files."""
    if n_shards is not None and shard >= n_shards:
        return "the plan has no such shard"
    try:
        commit = read_record(store, commit_path(shard), Commit)
        if commit is None or commit.shard != shard:
            raise UnsoundShardError("its record is that of another shard")
        tables: dict[str, pa.Table] = {}
        for name, file in commit.files.items():
            tables[name] = decode(read_verified(store, file))
            if tables[name].num_rows != file.rows:
                raise UnsoundShardError(f"{name} has {tables[name].num_rows} rows, committed with {file.rows}")
        if check is not None:
            check(shard, tables)
    except (UnsoundShardError, StorageError) as error:
        return str(error)
    return commit


def _norms_check(store: Store, plan: Plan, means: Mapping[int, Commit]) -> Check:
    """Holds norms against the stored prompts, and the means of their task where all shards of these are sound."""
    ids = pq.read_table(store.open(plan.inputs.path), columns=["id"])["id"].combine_chunks()
    n_components = len(read_components(store))
    sha256s: dict[str, bytes] = {}
    for task in plan.tasks:
        of_task = [number for number, shard in enumerate(plan.means) if shard.task == task]
        if means.keys() >= {*of_task}:
            sha256s[task] = means_sha256([means[number] for number in of_task]).encode()

    def check(number: int, tables: Tables) -> None:
        shard = plan.shards[number]
        wanted = ids.slice(shard.start, shard.n_prompts).to_pylist()
        check_norms(tables, wanted, plan.study.wrong_answers, n_components)
        found = (tables["norms"].schema.metadata or {}).get(MEANS_KEY)
        if found != sha256s.get(shard.task, found):
            raise UnsoundShardError("computed against other mean activations than those that are stored")

    return check


def _common_problems(store: Store, plan: Plan) -> Iterator[tuple[str, str]]:
    if problem := _inputs_problem(store, plan):
        yield plan.inputs.path, problem
    try:
        read_components(store)
    except (BadInput, KeyError, TypeError):
        yield COMPONENTS_FILE, "it cannot be read"


def _inputs_problem(store: Store, plan: Plan) -> str | None:
    """The stored prompts: all bytes, and every identifier once."""
    try:
        content = store.read(plan.inputs.path)
    except FileNotFoundError:
        return f"it is gone, and with it the study's prompts; {LOST}"
    if hashlib.sha256(content).hexdigest() != plan.inputs.sha256:
        return f"it does not have the checksum that is in the plan; {LOST}"
    ids = pq.read_table(pa.BufferReader(content), columns=["id"]).column("id")
    distinct = len(ids.unique())
    if distinct != len(ids) or distinct != plan.n_prompts:
        return f"it holds {distinct:,} different prompts in {len(ids):,} rows, and the plan {plan.n_prompts:,}"
    return None
