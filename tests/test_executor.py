"""The executor with work of a kind of its own: what is tried again, what is given up, and what a second run does."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from gbcd.errors import BadInput, Incomplete
from gbcd.run.commits import committed_ids, read_commits, read_given_up, read_table
from gbcd.run.executor import StageDriver, Team, execute
from gbcd.run.progress import ProgressDisplay
from gbcd.run.store import StorageError, Store
from gbcd.run.work import OnProgress, Outcome, Stage, Tables, Task, UnsoundShardError, Workers

LETTERS = Stage("letters", (2, 1), noun="letter", title="Letters")
SQUARES = Stage("squares", (3, 3, 2), noun="number", title="Squares")


class Squares:
    """Two stages; `act` may raise before a shard is computed."""

    def __init__(self, act: Callable[[str, int], object] = lambda stage, shard: None) -> None:
        self._act = act

    def compute(self, stage: str, shard: int, on_progress: OnProgress) -> Tables:
        self._act(stage, shard)
        on_progress(1)
        if stage == "letters":
            return {"rows": pa.table({"letter": ["a", "b"][: LETTERS.sizes[shard]]})}
        return {"rows": pa.table({"n": [shard], "status": ["ok"]}), "more": pa.table({"square": [shard**2]})}

    def check(self, stage: str, shard: int, tables: Tables) -> None:
        if stage == "squares" and tables["more"]["square"][0].as_py() != shard**2:
            raise UnsoundShardError("that is no square")


def run(out: Path, act: Callable[[str, int], object] = lambda stage, shard: None) -> str:
    said = io.StringIO()
    team = Team(str(out), partial(Squares, act), Workers(0))
    with team, ProgressDisplay(Console(file=said, width=200)) as display:
        execute(team, (LETTERS, SQUARES), display)
    return said.getvalue()


def failing(stage: str, shard: int, times: int, error: Exception) -> Callable[[str, int], object]:
    tries: list[int] = []

    def act(at: str, number: int) -> None:
        if (at, number) == (stage, shard) and len(tries) < times:
            tries.append(1)
            raise error

    return act


def test_every_shard_of_every_stage_is_committed_once_with_its_tables(tmp_path: Path) -> None:
    said = run(tmp_path)
    store = Store(str(tmp_path)).below("squares")
    commits = read_commits(store)
    assert [commit.shard for commit in commits] == [0, 1, 2]
    assert [read_table(store, commit.files["more"])["square"].to_pylist() for commit in commits] == [[0], [1], [4]]
    assert commits[0].statuses == {"ok": 1}
    assert "Letters: 3 of 3 letters" in said
    assert "Squares: 8 of 8 numbers, 3/3 shards" in said


def test_a_second_run_computes_only_what_is_missing(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "squares" / "commits" / "00001.json").unlink()
    computed: list[tuple[str, int]] = []
    run(tmp_path, lambda stage, shard: computed.append((stage, shard)))
    assert computed == [("squares", 1)]
    assert run(tmp_path, lambda stage, shard: 1 / 0) == ""


def test_a_shard_that_fails_twice_is_tried_a_third_time(tmp_path: Path) -> None:
    said = run(tmp_path, failing("squares", 1, 2, ArithmeticError("odd.")))
    assert said.count("shard 1: ArithmeticError: odd; trying again") == 2
    assert committed_ids(Store(str(tmp_path)).below("squares")) == {0, 1, 2}
    assert not (tmp_path / "squares" / "given_up").exists()


def test_a_shard_that_fails_three_times_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    said = run(tmp_path, failing("squares", 1, 3, ArithmeticError("odd\nand more")))
    store = Store(str(tmp_path)).below("squares")
    assert "shard 1 failed 3 times and was left out: ArithmeticError: odd\n" in said
    assert committed_ids(store) == {0, 2}
    assert [one.shard for one in read_given_up(store)] == [1]
    run(tmp_path)
    assert committed_ids(store) == {0, 1, 2}
    assert read_given_up(store) == []


def test_a_stage_does_not_begin_before_the_one_before_is_whole(tmp_path: Path) -> None:
    with pytest.raises(Incomplete, match=r"letters cannot be completed: shard 0 failed 3 times .*: KeyError: 'a'"):
        run(tmp_path, failing("letters", 0, 9, KeyError("a")))
    assert committed_ids(Store(str(tmp_path)).below("squares")) == set()


def test_tables_that_do_not_pass_the_check_are_never_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(work: Squares, stage: str, shard: int, tables: Tables) -> None:
        if shard == 2:
            raise UnsoundShardError("that is no square")

    monkeypatch.setattr(Squares, "check", check)
    assert "was left out: UnsoundShardError: that is no square" in run(tmp_path)
    assert committed_ids(Store(str(tmp_path)).below("squares")) == {0, 1}


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (BadInput("no such token"), BadInput, "^no such token$"),
        (StorageError("disk full"), Incomplete, "results cannot be stored: disk full"),
    ],
)
def test_what_is_no_fault_of_a_shard_ends_the_run(
    tmp_path: Path, error: Exception, raised: type[Exception], said: str
) -> None:
    with pytest.raises(raised, match=said):
        run(tmp_path, failing("squares", 1, 1, error))
    assert committed_ids(Store(str(tmp_path)).below("squares")) == {0}


class Script:
    """A pool that answers as it is told."""

    ready = 1

    def __init__(self, answers: list[Callable[[Task], Outcome]]) -> None:
        self._answers, self._task = answers, None

    def room(self) -> int:
        return int(self._task is None)

    def submit(self, task: Task) -> None:
        self._task = task

    def wait(self, timeout: float, on_progress: Callable[[], None]) -> list[Outcome]:
        task, self._task = self._task, None
        assert task is not None
        return [self._answers.pop(0)(task)]

    def done(self) -> int:
        return 0

    def close(self) -> None: ...


def test_a_machine_that_is_taken_away_counts_for_nothing(tmp_path: Path) -> None:
    taken: Callable[[Task], Outcome] = lambda task: Outcome(task, "node_lost", "spot")  # noqa: E731
    lost: Callable[[Task], Outcome] = lambda task: Outcome(task, "worker_lost", "killed")  # noqa: E731
    display = ProgressDisplay(Console(file=io.StringIO()))
    stage = Stage("", (1,))
    pool = Script([taken, taken, lost, taken, lost, taken, Outcome])
    assert StageDriver(Store(str(tmp_path)), stage, [0], pool, 1, display).run() == []
    pool = Script([lost, taken, lost, lost])
    [record] = StageDriver(Store(str(tmp_path)), stage, [0], pool, 1, display).run()
    assert record.message == "shard 0 failed 3 times and was left out: killed"
    assert json.loads((tmp_path / "given_up" / "00000.json").read_text())["attempts"] == 3


def test_workers_stay_from_one_call_to_the_next_and_come_up_only_where_something_is_left(tmp_path: Path) -> None:
    built: list[int] = []

    def build() -> Squares:
        built.append(1)
        return Squares()

    for _ in range(2):
        team = Team(str(tmp_path), build, Workers(0))
        with team, ProgressDisplay(Console(file=io.StringIO())) as display:
            execute(team, [LETTERS], display)
            execute(team, [SQUARES], display)
    assert built == [1]
