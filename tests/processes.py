"""Processes that start in a moment, forked from one that has imported the package; a new interpreter takes 4 seconds.

What the tests change or check in their own process, the shapes of tensors included, is not in them.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

#: What the server imports, so that its children need not.
_IMPORTED = ["gbcd.cli", "gbcd.pipeline", "gbcd.evaluation.evaluate", "gbcd.report.page", "small_runs", "fault_engines"]


class Process(NamedTuple):
    """A process, which writes its standard streams into files."""

    of: ForkServerProcess
    files: tuple[Path, Path]

    def ended(self) -> tuple[int | None, str, str]:
        """Exit status or minus the signal, and what it wrote to its output and its errors, when it is over."""
        self.of.join()
        out, err = (file.read_text() for file in self.files)
        return self.of.exitcode, out, err


@cache
def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
        patch.setenv("OMP_NUM_THREADS", "1")  # as many as here; without workers all processors compute
        forkserver.ensure_running()
    return context


def started(files: Path, target: Callable[..., object], *arguments: object, **how: Any) -> Process:
    """Start `target`, a function of a module; `files` and a suffix name the files of its streams.

    `folder` is where it runs, `environment` what it has besides.
    """
    names = (files.with_suffix(".out"), files.with_suffix(".err"))
    environment = {**os.environ, **how.pop("environment", {})}
    process = _server().Process(target=_run, args=(target, arguments, names, environment), kwargs=how)
    process.start()
    return Process(process, names)


def gbcd(files: Path, *words: str, **how: Any) -> Process:
    """Start one of our own commands."""
    return started(files, _command, words, **how)


def script(files: Path, path: Path, *words: str, **how: Any) -> Process:
    """Start a program of the project."""
    return started(files, _script, path, words, **how)


def _run(
    target: Callable[..., object],
    arguments: tuple[object, ...],
    files: tuple[Path, Path],
    environment: dict[str, str],
    folder: Path | None = None,
) -> None:
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    os.environ.update(environment)
    os.chdir(folder or ROOT)
    target(*arguments)


def _command(words: tuple[str, ...]) -> None:
    from gbcd.cli import app

    app(list(words))


def _script(path: Path, words: tuple[str, ...]) -> None:
    sys.argv, sys.path = [str(path), *words], [str(path.parent), *sys.path]
    runpy.run_path(str(path), run_name="__main__")
