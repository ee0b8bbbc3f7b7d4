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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a slow test come first, so that none of them is left over when the other files are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and, in `out`, a small study that ran here without an interruption; nobody changes it."""
    from small_runs import finished, small_study

    folder = tmp_path_factory.mktemp("reference")
    finished(small_study(folder))
    return folder


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks, wrong answers and scores that a test registers are not known after it."""
    from gbcd import tasks, wrong_answers
    from gbcd.evaluation import baselines
    from gbcd.tasks import _registry

    tasks.names()  # registers the package's own
    for module, name in ((_registry, "_tasks"), (wrong_answers, "_REGISTRY"), (baselines, "_BASELINES")):
        monkeypatch.setattr(module, name, dict(getattr(module, name)))


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """A Ray of this process, whose workers get the faults of tests by value: they do not have these on their path."""
    import fault_engines
    import ray

    from gbcd.run import ray_pool

    ray_pool.connect(2)
    ray.cloudpickle.register_pickle_by_value(fault_engines)
    yield
    ray.shutdown()


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
