"""A study of several models, as it lies on disk: a results folder for each model, and `parts.json`, which names them.

Every folder is whole by itself (plan, commits, components, calibration, summary), so whatever knows one model's results
knows these, and parts of different models never share a table of components or a list of norms. `parts.json` is written
last, when all plans are there; readers go by it and not by which folders there are.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

from gbcd.errors import BadInput
from gbcd.run.store import Store

PARTS = "parts.json"


class Part(BaseModel):
    """The tasks of one model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: str
    """Under the folder of the study; empty for a study of one model, which lies in that folder itself."""
    model: str
    tasks: tuple[str, ...]
    wrong_answers: tuple[str, ...]
    """Those of the study's definitions that mean something for this model's kind of answer."""
    undefined: dict[str, str] = {}
    """The others, with the reason."""


class Parts(BaseModel):
    """What `parts.json` holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parts: tuple[Part, ...]


def record_parts(store: Store, parts: tuple[Part, ...]) -> None:
    """Write `parts.json`, or find it as it should be.

    Raises:
        BadInput: another study is there.
    """
    if not store.create(PARTS, Parts(parts=parts).model_dump_json(indent=1).encode()):
        refuse_other_parts(store, parts)


def refuse_other_parts(store: Store, parts: tuple[Part, ...]) -> None:
    """Check that `store` holds no study of several models other than these.

    Raises:
        BadInput: it does.
    """
    there = _read(store)
    if there is not None and there != parts:
        raise BadInput(
            f"{store.location!r} holds another study, of {_described(there)}; asked for: {_described(parts)}. "
            "Give another --out, or ask for the same study to go on with it."
        )


def folders(out: str) -> list[str]:
    """The results folders of a study: `out` itself, or one for each of its models.

    Raises:
        BadInput: `parts.json` cannot be read.
    """
    parts = _read(Store(out))
    return [out] if parts is None else [folder_of(out, part) for part in parts]


def folder_of(out: str, part: Part) -> str:
    """Where the results of `part` lie."""
    return f"{out.rstrip('/')}/{part.folder}" if part.folder else out


def _read(store: Store) -> tuple[Part, ...] | None:
    try:
        raw = store.read(PARTS)
    except FileNotFoundError:
        return None
    try:
        return Parts.model_validate_json(raw).parts
    except ValidationError as error:
        raise BadInput(
            f"{store.location}/{PARTS} was not written by this version of gbcd, or it is damaged: remove it and run "
            "the same study again, which writes it anew"
        ) from error


def _described(parts: tuple[Part, ...]) -> str:
    return "; ".join(f"{', '.join(part.tasks)} on {part.model} ({', '.join(part.wrong_answers)})" for part in parts)
