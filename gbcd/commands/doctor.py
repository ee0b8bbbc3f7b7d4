"""`gbcd doctor`: is everything there that a run needs? One line per finding, and what to do about each that fails."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Annotated, NamedTuple

import typer
from rich.text import Text

from gbcd.commands.terminal import console, exit_status, hush_libraries
from gbcd.errors import BadInput
from gbcd.printing import fact
from gbcd.run.store import StorageError, Store
from gbcd.versions import versions

ModelName = Annotated[
    str, typer.Option("--model", metavar="NAME|PATH", help="Your model: a hub name, a directory or a GGUF file.")
]
Type = Annotated[str, typer.Option("--dtype", metavar="NAME", help="float32, float64 or bfloat16.")]
Location = Annotated[str, typer.Option("--out", metavar="FOLDER", help="Where results are to go.")]


class Finding(NamedTuple):
    """One line: what was looked at, whether it will do, and what was found or what to do."""

    what: str
    is_good: bool
    detail: str


def doctor(model: ModelName = "reference", out: Location = "results", dtype: Type = "float32") -> None:
    """Check the installation, devices, Ray, the place where results go, and a model: what it is, and how fast."""
    with exit_status():
        hush_libraries()
        findings = list(shown(looked_at_everything(model, out, dtype)))
        if bad := [finding.what for finding in findings if not finding.is_good]:
            raise BadInput(f"not ready: {', '.join(bad)}")
        fact(console, "Next", f"gbcd run --task ioi --model {model} --out {out}/ioi")


def looked_at_everything(model: str, out: str, dtype: str) -> Iterator[Finding]:
    """All findings, as they are made."""
    yield looked("installation", installation)
    yield looked("devices", devices)
    yield looked("ray", ray_works)
    yield looked("output", lambda: output_is_writable(out))
    yield from looked_at_model(model, dtype)


def looked(what: str, look: Callable[[], str]) -> Finding:
    """Look, and take what is known to go wrong as the finding."""
    try:
        return Finding(what, True, look())
    except (BadInput, StorageError, ConnectionError, ImportError, TimeoutError) as error:
        return Finding(what, False, str(error))


def installation() -> str:
    """Versions of what computes."""
    ray = importlib.metadata.version("ray")
    return ", ".join(f"{name} {version}" for name, version in versions().items()) + f", ray {ray}"


def devices() -> str:
    """Processor and GPUs."""
    import torch

    found = [f"{os.cpu_count()} processors ({platform.machine()})"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    return ", ".join(found) if len(found) > 1 else f"{found[0]}, no GPU: runs use the processors"


def ray_works() -> str:
    """Start Ray, or join the cluster of `RAY_ADDRESS`, and leave it again."""
    import ray

    from gbcd.run.ray_pool import connected

    with connected(1):
        resources = ray.cluster_resources()
        where = os.environ.get("RAY_ADDRESS") or "started here and stopped again"
        return f"{resources.get('CPU', 0):.0f} processors, {resources.get('GPU', 0):.0f} GPUs; {where}"


def looked_at_model(name: str, dtype: str) -> Iterator[Finding]:
    """Load the model, and look at it in every way; if it cannot be loaded, that is the one finding."""
    from gbcd.commands.model_checks import checks
    from gbcd.models import load as models

    try:
        loaded = models.load(name, "auto", dtype)
    except (BadInput, ConnectionError, ImportError, TimeoutError) as error:
        yield Finding("model", False, str(error))
    else:
        for what, check in checks(loaded).items():
            yield looked(what, partial(check, loaded))


def output_is_writable(out: str) -> str:
    """Create a file twice, which must be refused, and remove it again."""
    Store(out).refuse_overwriting()
    return f"{out}: can be written, creates a file once and only once"


def shown(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Print them, one a line, and hand them on."""
    for finding in findings:
        verdict = ("ok      ", "green") if finding.is_good else ("missing ", "red")
        console.print(Text.assemble((f"{finding.what:<13}", "bold"), verdict, finding.detail), soft_wrap=True)
        yield finding
