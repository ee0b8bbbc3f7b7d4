"""Every annotated tensor shape in the package is checked while the tests run.

Tiny models are slower on several threads than on one, and the tests of a machine's other core want it too. An example
of hypothesis may take its time: a busy machine is no failure.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook
from playwright.sync_api import Browser, sync_playwright

install_import_hook("gbcd", "beartype.beartype")
torch.set_num_threads(1)
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium, or playwright's."""
    with sync_playwright() as playwright:
        installed = shutil.which("chromium") or shutil.which("google-chrome") or playwright.chromium.executable_path
        if not Path(installed).exists():
            pytest.skip("no Chromium here: playwright install chromium")
        launched = playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        yield launched
        launched.close()
