"""SmolLM2-135M, the real model that tests use where it is present."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "models" / "smollm2-135m"


def smollm2() -> str:
    """What `--model` takes; the test is skipped, and says what it needs, where the model is absent."""
    if not FOLDER.is_dir():
        pytest.skip("needs SmolLM2-135M in models/smollm2-135m: make real-model")
    return str(FOLDER)
