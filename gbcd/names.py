"""Names under which tasks, definitions of the wrong answer and scores are registered."""

from __future__ import annotations

import re

from gbcd.errors import BadInput

_NAME = re.compile(r"\w[\w-]*")

_registered: list[tuple[str, str]] = []


def register_name(kind: str, name: str) -> None:
    """Note that something of this `kind` is registered as `name`.

    Raises:
        BadInput: the name has other characters than letters, digits, `_` and `-`.
    """
    if not _NAME.fullmatch(name):
        raise BadInput(f"{kind} {name!r}: a name is made of letters, digits, '_' and '-', since files are named by it")
    _registered.append((kind, name))


def n_registered() -> int:
    """How many names have been registered in this process."""
    return len(_registered)
