"""Reading everything back: does the folder hold every prompt exactly once, and every byte as it was committed?

Sums are compared with the commit records, tables are decoded and held against the stored prompts of their shard, and
the stored prompts against the plan. `forget` deletes the commits of bad shards, so that the next run computes exactly
those again; nothing else ever deletes a commit.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from gbcd.engine.tables import FAILED
from gbcd.errors import BadInput
from gbcd.run.commits import Commit, commit_path, committed_ids, read_record, read_verified
from gbcd.run.inputs import LOST
from gbcd.run.norm_checks import check_norms
from gbcd.run.norms_work import MEANS, MEANS_KEY, NORMS, means_sha256
from gbcd.run.results import COMPONENTS_FILE, failed_prompts, read_components
from gbcd.run.shards import Plan, read_plan
from gbcd.run.store import StorageError, Store
from gbcd.run.table_files import decode
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
        commits: records that are sound, and so are their files.
        bad: what is wrong, by shard.
        missing: shards without a commit.
        n_bytes: read and compared.
        orphans: files that no record names.
    """

    commits: list[Commit]
    bad: dict[int, str]
    missing: tuple[int, ...]
    n_bytes: int
    orphans: int


class Verification(NamedTuple):
    """What was found.

    Attributes:
        plan: what should be there.
        common: what is wrong with the files that all shards share; by file.
        means: the mean activations.
        norms: the shards of prompts.
        evaluations: the shards of evaluations, by folder; what they lack, the same `gbcd evaluate` computes.
        failed: prompts without values, with the reason.
    """

    plan: Plan
    common: dict[str, str]
    means: StageFindings
    norms: StageFindings
    evaluations: dict[str, StageFindings]
    failed: dict[str, str]

    @property
    def is_sound(self) -> bool:
        """True if every prompt is there exactly once, none failed, and nothing is damaged."""
        bad = [stage.bad for stage in (self.means, self.norms, *self.evaluations.values())]
        return not (self.common or any(bad) or self.means.missing or self.norms.missing or self.failed)

    @property
    def has_prompts(self) -> bool:
        """True if the stored prompts are as planned, without which nothing can be computed again."""
        return self.plan.inputs.path not in self.common

    @property
    def orphans(self) -> int:
        """Files that no record names: of attempts that never committed; harmless."""
        return sum(stage.orphans for stage in (self.means, self.norms, *self.evaluations.values()))

    @property
    def n_bytes(self) -> int:
        """Read and compared."""
        return sum(stage.n_bytes for stage in (self.means, self.norms, *self.evaluations.values()))


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
    hashes = _means_hashes(plan, means.commits)
    can_check = plan.inputs.path not in common and COMPONENTS_FILE not in common
    check = _norms_check(store, plan, hashes) if can_check else None
    norms = verify_stage(store.below(NORMS), len(plan.shards), check)
    evaluations = {folder: verify_stage(store.below(folder)) for folder in _stages_below(store, EVALUATIONS)}
    return Verification(plan, common, means, norms, evaluations, failed_prompts(store, norms.commits))


def forget(out: str, verification: Verification) -> None:
    """Delete the commits of what is damaged or failed; a run of the same study computes it again."""
    store = Store(out)
    for shard in verification.means.bad:
        store.below(MEANS).delete(commit_path(shard))
    failed = {commit.shard for commit in verification.norms.commits if FAILED in commit.statuses}
    for shard in failed | verification.norms.bad.keys():
        store.delete(commit_path(shard))
    for folder, found in verification.evaluations.items():
        for shard in found.bad:
            store.below(folder).delete(commit_path(shard))
    if COMPONENTS_FILE in verification.common:
        store.delete(COMPONENTS_FILE)


def _stages_below(store: Store, folder: str) -> list[str]:
    """Folders with commits, somewhere below `folder`."""
    found = (re.fullmatch(r"(.+)/commits/\d+\.json", entry.path) for entry in store.list(folder))
    return sorted({match[1] for match in found if match})


def verify_stage(store: Store, n_shards: int | None = None, check: Check | None = None) -> StageFindings:
    """Read back the commits and files of one stage.

    Args:
        store: of the stage's folder.
        n_shards: of the stage; None where that is not known, and nothing can be missing.
        check: refuses tables that are not those of a shard.

    Raises:
        StorageError: the folder cannot be listed.
    """
    shards = sorted(committed_ids(store))
    commits: list[Commit] = []
    bad: dict[int, str] = {}
    with ThreadPoolExecutor(READERS) as pool:
        examined = pool.map(lambda shard: _examined(store, shard, n_shards, check), shards)
        for shard, found in zip(shards, examined, strict=True):
            if isinstance(found, str):
                bad[shard] = found
            else:
                commits.append(found)
    named = {file.path for commit in commits for file in commit.files.values()}
    sizes = [file.bytes for commit in commits for file in commit.files.values()]
    kinds = {file.split("/")[0] for file in named}
    suspects = {f"{shard:05d}" for shard in bad}
    orphans = [
        entry.path
        for kind in sorted(kinds)
        for entry in store.list(kind)
        if entry.path not in named and entry.path.split("/")[-1].split(".")[0] not in suspects
    ]
    missing = tuple(sorted(set(range(n_shards or 0)) - set(shards)))
    return StageFindings(commits, bad, missing, sum(sizes), len(orphans))


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


def _means_hashes(plan: Plan, commits: Sequence[Commit]) -> dict[str, str]:
    """By task, the hash of its means, where all of their shards are sound."""
    found: dict[str, str] = {}
    for task in plan.tasks:
        of_task = [commit for commit in commits if plan.means[commit.shard].task == task]
        if len(of_task) == sum(shard.task == task for shard in plan.means):
            found[task] = means_sha256(of_task)
    return found


def _norms_check(store: Store, plan: Plan, means: dict[str, str]) -> Check:
    """Holds norms against the stored prompts and the means of their task."""
    ids = pq.read_table(store.open(plan.inputs.path), columns=["id"])["id"].combine_chunks()
    n_components = len(read_components(store))

    def check(number: int, tables: Tables) -> None:
        shard = plan.shards[number]
        wanted = ids.slice(shard.start, shard.n_prompts).to_pylist()
        check_norms(tables, wanted, plan.study.wrong_answers, n_components)
        sha256 = means.get(shard.task)
        if sha256 is not None and (tables["norms"].schema.metadata or {}).get(MEANS_KEY) != sha256.encode():
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
