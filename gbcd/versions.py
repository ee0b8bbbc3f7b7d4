"""Versions of what computes: rows of one table must come from the same."""

from __future__ import annotations

import platform
from importlib.metadata import version

#: Distributions whose version may change a number.
COMPUTING = ("gbcd", "torch", "transformers", "tokenizers", "numpy")


def versions() -> dict[str, str]:
    """Version of gbcd, of the libraries that compute, and of Python (without the patch level).

    A suffix that names the build of a library (`2.13.0+cpu`) is left out: the plan names the device.
    """
    found = {name: version(name).partition("+")[0] for name in COMPUTING}
    return {**found, "python": ".".join(platform.python_version_tuple()[:2])}
