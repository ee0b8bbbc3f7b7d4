"""Results in a bucket, behind a server that fails."""

from __future__ import annotations

import time
from collections.abc import Generator
from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest
from faulty_s3 import LATE, Fault, FaultyS3
from small_runs import finished, same, small_study, tables

from gbcd.errors import BadInput
from gbcd.run.store import StorageError, Store
from gbcd.run.verification import verify

pytestmark = pytest.mark.filterwarnings("ignore")  # the server's own


@pytest.fixture(scope="module")
def server() -> Generator[FaultyS3]:
    server = FaultyS3()
    server.make_bucket("bucket")
    yield server
    server.close()


@pytest.fixture
def s3(server: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> Generator[FaultyS3]:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    yield server
    server.decide = lambda method, path: None
    server.ignores_conditions = False
    server.faults.clear()


def test_create_is_exclusive(s3: FaultyS3) -> None:
    store = Store("s3://bucket/exclusive")
    assert store.create("record", b"one")
    assert not store.create("record", b"two")
    assert store.read("record") == b"one"


@pytest.mark.parametrize("fault", ["500", "503", "lost", "409"])
def test_a_create_survives_one_fault_of_each_kind(s3: FaultyS3, fault: Fault) -> None:
    """`lost`: the object is there, and it is ours. `409`: S3's answer while another creation is under way."""
    store = Store(f"s3://bucket/one-{fault}")
    s3.decide = lambda method, path: fault if method == "PUT" and not s3.faults else None
    assert store.create("record", b"mine")
    assert [found for found, _, _ in s3.faults] == [fault]
    assert store.read("record") == b"mine"


def test_a_create_whose_answer_comes_too_late_has_still_won(s3: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request is accepted, the client gives up waiting, and its second try finds its own object."""
    monkeypatch.setattr("gbcd.run.store.REQUEST_TIMEOUT", timedelta(seconds=1))
    store = Store("s3://bucket/late")
    s3.decide = lambda method, path: "late" if method == "PUT" and not s3.faults else None
    started = time.monotonic()
    assert store.create("record", b"mine")
    assert time.monotonic() - started < LATE
    assert not store.create("record", b"another's")
    assert store.read("record") == b"mine"


def test_a_bucket_that_does_not_exist_is_bad_input(
    s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gbcd.run.store.BACKOFF", (0.0,))
    with pytest.raises(BadInput, match=r"^s3://none/study: there is no such bucket$"):
        finished(small_study(tmp_path, out="s3://none/study"))


def test_missing_credentials_are_bad_input(s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's role is asked then, here of a service that knows none."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"{s3.url}/169.254.169.254")
    s3.decide = lambda method, path: "403" if "169.254.169.254" in path else None
    with pytest.raises(BadInput, match=r"^s3://bucket/study: no credentials: set AWS_ACCESS_KEY_ID and"):
        finished(small_study(tmp_path, out="s3://bucket/study"))


def test_a_store_that_ignores_the_condition_is_refused_before_anything_is_planned(s3: FaultyS3, tmp_path: Path) -> None:
    s3.ignores_conditions = True
    with pytest.raises(BadInput, match="this store overwrites what is to be created only once"):
        finished(small_study(tmp_path, out="s3://bucket/overwriting"))
    assert Store("s3://bucket/overwriting").list("") == []


def test_what_lasts_is_a_storage_error_without_secrets(s3: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gbcd.run.store.BACKOFF", (0.0,))
    s3.decide = lambda method, path: "412" if method == "GET" else None
    with pytest.raises(StorageError) as refused:
        Store("s3://bucket/lasting").read("x")
    assert "not-a-secret" not in str(refused.value)


def test_a_study_comes_through_a_server_that_fails_every_fifth_time(s3: FaultyS3, tmp_path: Path) -> None:
    """Each fault is followed by good answers, so that retries can do their work."""
    finished(small_study(tmp_path))
    faults: list[Fault] = ["500", "lost", "503"]
    number = count()

    def decide(method: str, path: str) -> Fault | None:
        turn = next(number)
        return faults[turn // 5 % len(faults)] if turn % 5 == 4 else None

    s3.decide = decide
    study = small_study(tmp_path, out="s3://bucket/study")
    assert finished(study).missing == ()
    assert len(s3.faults) > 10
    s3.decide = lambda method, path: None
    assert same(tables(study.out), tables(str(tmp_path / "out")))
    assert verify(study.out).is_sound
