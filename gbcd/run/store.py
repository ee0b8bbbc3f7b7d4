"""Where results lie: one folder or one prefix of a bucket, by the same few operations.

Local folders, `s3://` and `gs://` all go through obstore. Objects appear whole or not at all. Two kinds of write are
enough for everything: `write` (the last one wins; used for what is named uniquely or may be recomputed) and `create`
(the first one wins; used for the plan, the calibration and the commits, on which "exactly once" rests: a hard link on
a local disk, `If-None-Match: *` on S3, a generation match on GCS).

A `create` whose answer was lost on the way looks, when repeated, as if somebody else had come first. So a loser reads
what is there, and if it is byte for byte what it meant to write, it has won; records that must be told apart carry
the identifier of the attempt that wrote them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple, TypeVar
from uuid import uuid4

import obstore
import obstore.exceptions
import pyarrow as pa
from obstore.store import LocalStore, ObjectStore, from_url

from gbcd.errors import BadInput

#: Waits, in seconds, before an operation that failed for a reason that may pass is tried again (beyond the library's
#: own retries of single requests, which do not cover writes that timed out).
BACKOFF = (0.2, 1.0, 5.0)

#: After which a request that has had no answer is given up, and tried again.
REQUEST_TIMEOUT = timedelta(minutes=1)

T = TypeVar("T")


class StorageError(RuntimeError):
    """Results cannot be read or written for a reason that lies outside the program: a full disk, a refused request.

    Attributes:
        is_lasting: True if waiting does not help, so that the location is a wrong one to start with.
    """

    def __init__(self, message: str, is_lasting: bool = False) -> None:
        super().__init__(message)
        self.is_lasting = is_lasting


class Entry(NamedTuple):
    """One stored object."""

    path: str
    size: int


class Store:
    """The objects under one location. Paths are relative to it, with forward slashes.

    Every operation raises `StorageError` where it cannot be done, and `BadInput` where a bucket cannot be used at all.
    """

    def __init__(self, location: str) -> None:
        """Open `location`; nothing is created before the first write.

        Raises:
            BadInput: the scheme is not one of file, s3, gs, or the location is a file.
        """
        self.is_local = "://" not in location
        location = os.path.expanduser(location) if self.is_local else location
        self.location = location.rstrip("/") or "/"
        if self.is_local and Path(location).exists() and not Path(location).is_dir():
            raise BadInput(f"{location!r} is a file; results need a folder: give another --out")
        if not self.is_local and not location.startswith(("s3://", "gs://")):
            raise BadInput(
                f"results cannot go to {location!r}: give a folder, s3://bucket/prefix or gs://bucket/prefix"
            )
        self.root = self.location  # of the results folder that this is a folder of
        self._objects = None if self.is_local else _remote(self.location)
        self._has_answered = False

    def below(self, folder: str) -> Store:
        """The objects in a folder of this location; "" for all of them."""
        store = Store(f"{self.location}/{folder}") if folder else self
        store.root = self.root
        return store

    def read(self, path: str) -> bytes:
        """The object's bytes; `FileNotFoundError` if there is none."""
        return self._tried(path, lambda store: obstore.get(store, path).bytes().to_bytes())

    def exists(self, path: str) -> bool:
        """True if there is such an object."""
        return self.size(path) is not None

    def size(self, path: str) -> int | None:
        """Bytes of the object; None if there is none."""
        try:
            return self._tried(path, lambda store: obstore.head(store, path)["size"])
        except FileNotFoundError:
            return None

    def open(self, path: str) -> pa.NativeFile:
        """The object as a file for random access, of which only the ranges that are asked for travel."""
        if self.is_local:
            return pa.OSFile(self.url(path))
        reader = self._tried(path, lambda store: obstore.open_reader(store, path))
        file = SimpleNamespace(read=reader.read, seek=reader.seek, tell=reader.tell, close=reader.close, closed=False)
        return pa.PythonFile(file, mode="r")

    def list(self, prefix: str) -> list[Entry]:
        """All objects under the folder `prefix`, in order of path."""

        def listing(store: ObjectStore) -> list[Entry]:
            return sorted(Entry(meta["path"], meta["size"]) for page in obstore.list(store, prefix) for meta in page)

        try:
            return self._tried(prefix, listing)
        except FileNotFoundError:
            return []

    def write(self, path: str, data: bytes | Path) -> None:
        """Write an object, whole; an earlier one is replaced. `data` may be a local file."""
        self._make_folder()
        self._tried(path, lambda store: obstore.put(store, path, data), is_write=True)
        self._settle(path)

    def create(self, path: str, data: bytes) -> bool:
        """Write an object unless there is one: True if it now holds `data`, False if somebody else was first."""

        def attempt(store: ObjectStore) -> bool:
            try:
                obstore.put(store, path, data, mode="create", use_multipart=False)
            except obstore.exceptions.AlreadyExistsError:
                return obstore.get(store, path).bytes().to_bytes() == data
            return True

        self._make_folder()
        won = self._tried(path, attempt, is_write=True)
        if won:
            self._settle(path)
        return won

    def refuse_overwriting(self) -> None:
        """Make sure that a second exclusive creation is refused, on which everything rests.

        Raises:
            BadInput: it is not, as with object stores that do not know `If-None-Match: *`.
        """
        path = f"probe-{uuid4().hex}"
        try:
            if not self.create(path, b"first") or self.create(path, b"second") or self.read(path) != b"first":
                raise BadInput(
                    f"{self.location}: this store overwrites what is to be created only once, so two workers could "
                    "both commit a shard; use another store, or a version of it that knows conditional writes"
                )
        finally:
            self.delete(path)

    def delete(self, path: str) -> None:
        """Remove the object, if there is one."""
        try:
            self._tried(path, lambda store: obstore.delete(store, path))
        except FileNotFoundError:
            return

    def url(self, path: str) -> str:
        """Address of an object, as polars takes it."""
        return str(Path(self.location).absolute() / path) if self.is_local else f"{self.location}/{path}"

    def _make_folder(self) -> None:
        if self.is_local:
            try:
                Path(self.location).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageError(f"folder {self.location!r} cannot be made: {error.strerror}", True) from error

    def _connected(self) -> ObjectStore:
        if self._objects is None:
            if not Path(self.location).is_dir():
                raise FileNotFoundError(self.location)
            self._objects = LocalStore(Path(self.location).absolute())
        return self._objects

    def _tried(self, path: str, operation: Callable[[ObjectStore], T], is_write: bool = False) -> T:
        for wait in (*BACKOFF, None):
            try:
                found = operation(self._connected())
            except FileNotFoundError as error:
                # After a refused `create` the winner's object may not be there yet: S3 answers 409 while it arrives.
                if not is_write:
                    self._has_answered = True
                    raise
                if wait is None:
                    raise BadInput(f"{self.location}: there is no such bucket") from error
                time.sleep(wait)
            except (obstore.exceptions.BaseError, OSError, ValueError) as error:
                is_lasting = self.is_local or isinstance(error, _LASTING)
                if not self.is_local and not self._has_answered and (refusal := _refusal(error)):
                    raise BadInput(f"{self.location}: {refusal}") from error
                if wait is None or is_lasting:
                    raise StorageError(f"{self.location}/{path}: {_reason(error)}", is_lasting) from error
                time.sleep(wait)
            else:
                self._has_answered = True
                return found
        raise AssertionError("unreachable")

    def _settle(self, path: str) -> None:
        """Flush a local file and its name: after a power cut a commit must not be there without its data."""
        if not self.is_local:
            return
        for target in (Path(self.url(path)), Path(self.url(path)).parent):
            descriptor = os.open(target, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT", "AWS_ENDPOINT_URL")

_REFUSED = (obstore.exceptions.PermissionDeniedError, obstore.exceptions.UnauthenticatedError)

#: Where a machine in a cloud asks for its role, which is tried where no credentials are given.
_METADATA = ("169.254.169.254", "metadata.google.internal")

#: Errors that no waiting cures.
_LASTING = (*_REFUSED, obstore.exceptions.InvalidPathError, obstore.exceptions.NotSupportedError)


def _remote(location: str) -> ObjectStore:
    """Credentials and endpoint come from variables of the environment or the machine's role; profiles are not read."""
    allows_http = os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true"
    for name in _VARIABLES if location.startswith("s3://") else ():
        value = os.environ.get(name)
        if value is not None and not value.strip():
            raise BadInput(f"{location!r} cannot be used: {name} is set, and empty; give it a value, or unset it")
        if name.startswith("AWS_ENDPOINT") and (value or "").startswith("http://") and not allows_http:
            raise BadInput(f"{location!r} cannot be used: {name} is {value}; give https://, or set AWS_ALLOW_HTTP=true")
    try:
        return from_url(
            location,
            client_options={"timeout": REQUEST_TIMEOUT, "allow_http": allows_http},
            retry_config={"max_retries": 8, "retry_timeout": timedelta(minutes=2)},
        )
    except Exception as error:
        raise BadInput(f"{location!r} cannot be used: {_reason(error)}") from error


def _refusal(error: Exception) -> str | None:
    """Why a bucket cannot be used at all, where that is what its first answer says."""
    if any(address in str(error) for address in _METADATA):
        return (
            "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (s3://) or GOOGLE_APPLICATION_CREDENTIALS "
            "(gs://), or run on a machine whose role may use the bucket"
        )
    return f"access is refused: {_reason(error)}" if isinstance(error, _REFUSED) else None


def _reason(error: BaseException) -> str:
    """First line only: what follows can hold the whole request."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
