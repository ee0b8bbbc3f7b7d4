"""Everything that wants a GPU, in one command: what is right there, and how fast. `make gpu-check` runs it.

    python benchmarks/gpu_check.py --models gpt2 models/smollm2-135m --json gpu.jsonl

Of each model and type: the checks of `gbcd doctor` (logits against the library, norms against float64 autograd, change
with the batch, speed, memory), and the contenders of `engine.py`; `of_floor` is the time of the bare products of
matrices over that of a contender. Then a whole job, planned, run by so many workers that share the GPU, reduced. Each
line is a JSON object that says what it is of.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from contenders import model_of, setting
from engine import CLOCKS, measure
from rich.console import Console

import gbcd
from gbcd.commands.model_checks import checks
from gbcd.models.load import DTYPES, resolve_device

#: Contenders that are too slow, or say nothing of a GPU.
SKIPPED = ("proposal", "norms of maps", "Opacus")


def of_model(name: str, dtype: str, asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Checks and contenders of one model."""
    loaded = model_of(name, asked.device, dtype)
    for label, check in checks(loaded).items():
        yield {"model": name, "dtype": dtype, "check": label, "found": check(loaded)}
    for batch in asked.batches:
        rows = measure(setting(loaded, asked.length, batch), asked.rounds, SKIPPED, CLOCKS["wall"])
        floor = next(row["seconds"] for row in rows if row["name"] == "bare products")
        yield from ({**row, "model": name, "dtype": dtype, "of_floor": floor / row["seconds"]} for row in rows)


def of_job(name: str, workers: int, asked: argparse.Namespace) -> dict[str, Any]:
    """A whole job on one GPU."""
    with TemporaryDirectory() as out:
        compute = gbcd.Compute(workers=workers, device=asked.device, gpus_per_worker=1 / workers)
        study = gbcd.Study(model=name, tasks=("ioi",), prompts_per_task=asked.prompts, out=out, compute=compute)
        begin = time.perf_counter()
        gbcd.run_study(study, Console(file=io.StringIO()))
        seconds = time.perf_counter() - begin
        n = gbcd.prompts(out).collect().height
    return {"job": name, "workers": workers, "prompts": n, "seconds": seconds, "prompts_per_second": n / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["gpt2"], help="types of the library, or folders")
    parser.add_argument("--jobs", nargs="*", default=["reference"], help="models of whole jobs: folders, or reference")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=["float32", "bfloat16"])
    parser.add_argument("--length", type=int, default=20)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompts", type=int, default=5000, help="prompts of a job")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="workers that share the GPU")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path, help="file for the same lines")
    asked = parser.parse_args()
    for dtype in asked.dtypes:
        resolve_device(asked.device, dtype)
    found: list[str] = []

    def tell(row: dict[str, Any]) -> None:
        found.append(json.dumps(row))
        print(found[-1], flush=True)

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    tell({"gpu": gpu, "torch": torch.__version__})
    for name in asked.models:
        for dtype in asked.dtypes:
            for row in of_model(name, dtype, asked):
                tell(row)
    for name in asked.jobs:
        for workers in asked.workers:
            tell(of_job(name, workers, asked))
    if asked.json:
        asked.json.write_text("\n".join(found) + "\n")


if __name__ == "__main__":
    main()
