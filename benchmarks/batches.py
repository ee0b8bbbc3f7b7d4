"""What the layout of a batch is worth, on full-size GPT-2 with random weights and real IOI prompts.

    python benchmarks/batches.py

Norms only, in turn: a prompt and its twin as a tree that shares their prefix, against two sequences; prompts in the
order in which they are drawn, padded to the longest of a batch, against batches of like lengths; and batches of several
sizes. Seconds are the processor's, of one thread, so that a busy machine does not count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence

import torch
from gbcd.engine.part_norms import circuit_norms
from gbcd.models.gpt2_pass import Gpt2Pass
from gbcd.models.units import Sequences, pack
from transformers import GPT2Config, GPT2LMHeadModel

from gbcd import tasks
from gbcd.component import Component
from gbcd.models.load import prepared
from gbcd.prompting.tokens import encode
from training.tokenizer import build_tokenizer


def norms(model_pass: Gpt2Pass, units: Sequence[Sequences], components: list[Component]) -> None:
    forward = model_pass.forward(units)
    gradient = torch.zeros_like(forward.logits)
    gradient[..., 0], gradient[..., 1] = 1, -1
    circuit_norms(forward.backward(gradient), components, len(units))


def batches(units: Sequence[Sequences], size: int) -> list[Sequence[Sequences]]:
    return [units[start : start + size] for start in range(0, len(units), size)]


def tokens(units: Sequence[Sequences], size: int) -> int:
    """Tokens that are computed, padding included."""
    return sum(pack(batch, torch.device("cpu")).ids.numel() for batch in batches(units, size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = build_tokenizer(64)
    loaded = prepared("random gpt2", GPT2LMHeadModel(GPT2Config()), tokenizer)
    model_pass, components = Gpt2Pass(loaded.model), loaded.components
    prompts = encode(tasks.draw("ioi", tokenizer, arguments.prompts, 0), tokenizer, loaded.context)
    alone: list[Sequences] = [(prompt.ids,) for prompt in prompts]
    pairs: list[Sequences] = [(prompt.ids, prompt.twin_ids) for prompt in prompts if prompt.twin_ids is not None]
    layouts: dict[str, tuple[Sequence[Sequences], int]] = {
        "prompt and twin, shared prefix": (pairs, 16),
        "prompt and twin, two sequences": ([(sequence,) for pair in pairs for sequence in pair], 32),
        "drawn order, padded": (alone, 16),
        "like lengths together": (sorted(alone, key=lambda unit: len(unit[0])), 16),
        "batches of 4": (alone, 4),
        "batches of 64": (alone, 64),
    }
    seconds: dict[str, list[float]] = {name: [] for name in layouts}
    for _ in range(arguments.rounds):
        for name, (units, size) in layouts.items():
            start = time.process_time()
            for batch in batches(units, size):
                norms(model_pass, batch, components)
            seconds[name].append(time.process_time() - start)
    for name, (units, size) in layouts.items():
        found = sorted(seconds[name])
        row = {"layout": name, "prompts": len(alone), "tokens": tokens(units, size)}
        print(json.dumps(row | {"seconds": statistics.median(found), "spread": [found[0], found[-1]]}))


if __name__ == "__main__":
    main()
