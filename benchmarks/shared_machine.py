"""What waiting threads cost beside busy processes: norms of the shipped model, by OpenMP's waiting policy.

    python benchmarks/shared_machine.py --busy 2

Every line is a process of its own, since the policy is read when torch is loaded. Processor time counts all threads of
the process: what it takes beyond that of one thread was spent waiting.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import time

PROMPTS, BATCH = 128, 32


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--busy", type=int, default=2, help="processes that compute beside the measured one")
    arguments.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    asked = arguments.parse_args()
    if asked.measure:
        measure(asked.measure)
        return
    others = [multiprocessing.get_context("spawn").Process(target=spin, daemon=True) for _ in range(asked.busy)]
    for other in others:
        other.start()
    print("| threads | OMP_WAIT_POLICY | prompts/s | processor ms a prompt |\n|---|---|---|---|", flush=True)
    for threads in (1, 2):
        for policy in ("ACTIVE", "PASSIVE"):
            command = [sys.executable, __file__, "--measure", str(threads)]
            subprocess.run(command, env={**os.environ, "OMP_WAIT_POLICY": policy}, check=True)
    for other in others:
        other.kill()


def measure(threads: int) -> None:
    import gbcd

    loaded = gbcd.load_model("reference")
    prompts = gbcd.draw("ioi", loaded.tokenizer, PROMPTS, 0)

    def norms() -> None:
        import torch

        torch.set_num_threads(threads)
        gbcd.gradient_norms(loaded.model, loaded.tokenizer, prompts, batch_size=BATCH)

    norms()
    wall, processor = time.perf_counter(), time.process_time()
    norms()
    rate, cost = PROMPTS / (time.perf_counter() - wall), 1e3 * (time.process_time() - processor) / PROMPTS
    print(f"| {threads} | {os.environ['OMP_WAIT_POLICY']} | {rate:.0f} | {cost:.1f} |", flush=True)


def spin() -> None:
    while True:
        sum(range(10_000))


if __name__ == "__main__":
    main()
