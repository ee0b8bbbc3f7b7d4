"""Reads the plain data that tasks are made of: words, templates and published circuits.

The files lie in `datasets/` of a checkout, where a researcher edits them, and in `gbcd/_datasets` of an installed
wheel.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from gbcd.errors import BadInput


class PublishedCircuit(BaseModel):
    """A circuit that a paper has found by hand.

    Attributes:
        model: the model it was found in; it is truth for no other.
        source: paper and the list followed.
        classes: role -> nodes, for example `name mover` -> `a9.h9`, ...
        parts: parts of those nodes, where the source names them; else empty.
        notes: where sources differ.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    source: str
    classes: dict[str, tuple[str, ...]]
    parts: tuple[str, ...] = ()
    notes: str = ""

    @property
    def nodes(self) -> tuple[str, ...]:
        """All nodes, each once, in the order of the classes."""
        return tuple(dict.fromkeys(node for nodes in self.classes.values() for node in nodes))


def folder() -> Path:
    """The folder of data files: the wheel's own copy where there is one, else the checkout's `datasets/`.

    Raises:
        BadInput: the package has neither.
    """
    package = Path(__file__).parent.parent
    for candidate in (package / "_datasets", package.parent / "datasets"):
        if candidate.is_dir():
            return candidate
    raise BadInput(
        f"The data files of gbcd are missing: no _datasets in {package} and no datasets/ beside it. Reinstall it."
    )


def words(name: str) -> list[str]:
    """The words of `name`.txt, one a line, each once."""
    lines = (line.strip() for line in _text(f"{name}.txt").splitlines())
    return list(dict.fromkeys(line for line in lines if line))


def table(name: str) -> dict[str, Any]:
    """The content of `name`.toml.

    Raises:
        BadInput: the file is not TOML.
    """
    try:
        return tomllib.loads(_text(f"{name}.toml"))
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{folder() / name}.toml is not TOML: {error}. Correct the file.") from error


def published_circuit(key: str) -> PublishedCircuit:
    """The circuit under `key` in `circuits.json`.

    Raises:
        BadInput: there is none.
    """
    circuits = json.loads(_text("circuits.json"))
    if key not in circuits:
        raise BadInput(f"circuits.json has no circuit '{key}'. It has: {', '.join(circuits)}.")
    return PublishedCircuit.model_validate(circuits[key])


def _text(file: str) -> str:
    path = folder() / file
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise BadInput(f"The data file {path} does not exist. Restore it, or reinstall gbcd.") from error
