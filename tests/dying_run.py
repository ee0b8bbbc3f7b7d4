"""`gbcd run` in a process that ends itself, as `kill -9` would, at a place in its work on a shard."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gbcd.cli import app
from gbcd.run.store import Store

WRITE, CREATE = Store.write, Store.create


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before_write(store: Store, path: str, data: bytes | Path, shard: int = 2) -> None:
    if path.startswith(f"prompts/{shard:05d}"):
        die()
    WRITE(store, path, data)


def mid_file(store: Store, path: str, data: bytes | Path, shard: int = 2) -> None:
    if path.startswith(f"prompts/{shard:05d}") and isinstance(data, bytes):
        WRITE(store, path, data[: len(data) // 2])
        die()
    WRITE(store, path, data)


def before_commit(store: Store, path: str, data: bytes, shard: int = 2) -> bool:
    if path == f"commits/{shard:05d}.json":
        die()
    return CREATE(store, path, data)


def after_commit(store: Store, path: str, data: bytes, shard: int = 2) -> bool:
    created = CREATE(store, path, data)
    if path == f"commits/{shard:05d}.json":
        die()
    return created


PLACES: dict[str, tuple[str, Callable[..., Any]]] = {
    "before_write": ("write", before_write),
    "mid_file": ("write", mid_file),
    "before_commit": ("create", before_commit),
    "after_commit": ("create", after_commit),
}


def run(place: str, words: list[str]) -> None:
    method, replacement = PLACES[place]
    setattr(Store, method, replacement)
    app(words)
