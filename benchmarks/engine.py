"""The engine against the alternatives: random weights of GPT-2's size, or a model in a folder.

    python benchmarks/engine.py --model gpt2 llama --lengths 20 --batches 64 --threads 1 --clock cpu
    python benchmarks/engine.py --model models/smollm2-135m --lengths 17 --batches 32 --json

Every round runs every contender once, in turn, so that a change in the machine's speed meets all of them; medians over
rounds are compared. `vs_plain` is the time relative to a plain batched forward and backward pass with logits at the
answer alone.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from contenders import PLAIN, Setting, contenders, model_of, setting

from gbcd.models.load import DTYPES

Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_mb(run: Callable[[], object], device: torch.device) -> float:
    """Memory that `run` needs above what is held before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - held) / 1e6
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    held = _status_kb("VmRSS")
    run()
    return (_status_kb("VmHWM") - held) / 1e3


def _status_kb(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def measure(s: Setting, rounds: int, skip: tuple[str, ...], clock: Clock) -> list[dict[str, Any]]:
    device = s.ids.device
    found = [contender for contender in contenders(s) if not contender.name.startswith(skip)]
    peaks = {contender.name: peak_mb(contender.run, device) for contender in found}
    seconds: dict[str, list[float]] = {contender.name: [] for contender in found}
    for _ in range(rounds):
        for contender in found:
            synchronize(device)
            start = clock()
            contender.run()
            synchronize(device)
            seconds[contender.name].append((clock() - start) / contender.share)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    batch, length = s.ids.shape
    return [
        {
            "model": Path(s.loaded.name).name,
            "name": name,
            "T": length,
            "batch": batch,
            "seconds": medians[name],
            "spread": [min(seconds[name]), max(seconds[name])],
            "prompts_per_second": batch / medians[name],
            "peak_mb": peaks[name],
            "vs_plain": medians[name] / medians[PLAIN],
        }
        for name in medians
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["gpt2"], help="types of the library, or folders")
    parser.add_argument("--lengths", type=int, nargs="+", default=[20])
    parser.add_argument("--batches", type=int, nargs="+", default=[64])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--skip", nargs="*", default=[], help="first words of contenders to leave out")
    parser.add_argument(
        "--clock", choices=list(CLOCKS), default="wall", help="cpu, with --threads 1: on a busy machine"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = CLOCKS[arguments.clock]
    torch.manual_seed(0)
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    machine = {"machine": platform.processor() or platform.machine(), "threads": arguments.threads} | versions
    print(
        json.dumps(machine | {"device": arguments.device, "dtype": arguments.dtype, "clock": arguments.clock}),
        file=sys.stderr,
    )
    for name in arguments.model:
        loaded = model_of(name, arguments.device, arguments.dtype)
        for length in arguments.lengths:
            for batch in arguments.batches:
                for row in measure(setting(loaded, length, batch), arguments.rounds, tuple(arguments.skip), clock):
                    print(json.dumps(row) if arguments.json else _readable(row), flush=True)


def _readable(row: dict[str, Any]) -> str:
    return (
        f"{row['model']:<14} T={row['T']:<4} batch={row['batch']:<4} {row['name']:<52} "
        f"{row['seconds'] * 1e3:9.1f} ms "
        f"[{row['spread'][0] * 1e3:.0f}, {row['spread'][1] * 1e3:.0f}] {row['prompts_per_second']:8.1f} prompts/s "
        f"{row['peak_mb']:8.0f} MB  vs plain {row['vs_plain']:.3f}"
    )


if __name__ == "__main__":
    main()
