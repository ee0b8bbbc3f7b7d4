"""Names under which tasks, definitions of the wrong answer and scores are registered."""

from __future__ import annotations

import re

from gbcd.errors import BadInput

_NAME = re.compile(r"\w[\w-]*")

#: Bytes of a name; file systems take 255 for the name of a file, and files are named by a task and a wrong answer.
MAX_BYTES = 100

registered: list[tuple[str, str]] = []
"""Kind and name of all that was registered in this process."""


def register_name(kind: str, name: str) -> None:
    """Note that something of this `kind` is registered as `name`.

    Raises:
        BadInput: the name has other characters than letters, digits, `_` and `-`, or is too long.
    """
    if not _NAME.fullmatch(name):
        raise BadInput(f"{kind} {name!r}: a name is made of letters, digits, '_' and '-', since files are named by it")
    if len(name.encode()) > MAX_BYTES:
        raise BadInput(f"{kind} {name!r:.40}: a name has at most {MAX_BYTES} bytes, since files are named by it")
    registered.append((kind, name))
