"""Memory of processes on one machine that hold the same model: what each has to itself, and what they share.

    python benchmarks/host_memory.py --processes 2

A randomly initialised GPT-2 small is saved to a folder; every process loads it as a worker does, hashes the weights,
which reads them all, and waits until the others have too. Then the kernel is asked (`/proc/PID/smaps_rollup`):
`private_mb` is memory of the process alone, `pss_mb` that and its share of what several map. A row of JSON for each
type of weights (`float32` is the file's own, `bfloat16` is converted), in MB above a process that has imported the same
and loaded nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import tempfile
from multiprocessing.synchronize import Barrier
from pathlib import Path

from transformers import GPT2Config, GPT2LMHeadModel

from gbcd.commands.terminal import hush_libraries
from gbcd.models import load as models
from training.tokenizer import build_tokenizer


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--processes", type=int, default=2)
    asked = arguments.parse_args()
    hush_libraries()
    with tempfile.TemporaryDirectory() as folder:
        model = GPT2LMHeadModel(GPT2Config())
        model.save_pretrained(folder)
        build_tokenizer(1024).save_pretrained(folder)
        megabytes = sum(parameter.numel() for parameter in model.parameters()) * 4 / 1e6
        del model
        nothing = measured(folder, None, asked.processes)
        for dtype in ("float32", "bfloat16"):
            found = measured(folder, dtype, asked.processes)
            above = {name: round(found[name] - nothing[name]) for name in found}
            print(json.dumps({"dtype": dtype, "file_mb": round(megabytes), "processes": asked.processes, **above}))


def measured(folder: str, dtype: str | None, n_processes: int) -> dict[str, float]:
    """Megabytes of the first of several processes, while all of them hold the model."""
    context = multiprocessing.get_context("spawn")
    loaded, read = context.Barrier(n_processes + 1), context.Barrier(n_processes + 1)
    started = [context.Process(target=hold, args=(folder, dtype, loaded, read)) for _ in range(n_processes)]
    for process in started:
        process.start()
    loaded.wait(600)
    kilobytes = dict(re.findall(r"(\w+): +(\d+) kB", Path(f"/proc/{started[0].pid}/smaps_rollup").read_text()))
    read.wait(600)
    for process in started:
        process.join()
    private = int(kilobytes["Private_Clean"]) + int(kilobytes["Private_Dirty"])
    return {"private_mb": private / 1e3, "pss_mb": int(kilobytes["Pss"]) / 1e3}


def hold(folder: str, dtype: str | None, loaded: Barrier, read: Barrier) -> None:
    """Keep the model until it has been measured."""
    hush_libraries()
    model = None if dtype is None else models.load(folder, "cpu", dtype)
    if model is not None:
        assert model.sha256
    loaded.wait(600)
    read.wait(600)


if __name__ == "__main__":
    main()
