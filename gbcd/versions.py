"""Versions of what computes: rows of one table must come from the same."""

from __future__ import annotations

import platform
from importlib.metadata import version

#: Of this package. Not asked of the installation: a Ray job may bring the package along as plain files.
GBCD = "0.1.0"

#: Distributions whose version may change a number.
COMPUTING = ("torch", "transformers", "tokenizers", "numpy")


def versions() -> dict[str, str]:
    """Version of gbcd, of the libraries that compute, and of Python (without the patch level).

    A suffix that names the build of a library (`2.13.0+cpu`) is left out: the plan names the device.
    """
    found = {name: version(name).partition("+")[0] for name in COMPUTING}
    return {"gbcd": GBCD, **found, "python": ".".join(platform.python_version_tuple()[:2])}
