"""What truth costs, and what estimates cost: measured in forward passes, on full-size GPT-2 with random weights.

    python benchmarks/effects.py > benchmarks/results/effects_cpu.jsonl

A forward pass over all prompts, with logits at the answer alone, is timed before, between and after; its median is the
unit. `formula` is what `gbcd evaluate` reports as cost, `measured` the time divided by the unit. Times are those of the
processor, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
from gbcd.evaluation.attribution import attribute
from gbcd.evaluation.interventions import measure_effects
from gbcd.evaluation.points import points
from transformers import GPT2Config, GPT2LMHeadModel

from gbcd.engine.engine import Engine
from gbcd.evaluation.metrics import metric_for
from gbcd.evaluation.pairs import pair_up
from gbcd.models.load import prepared
from gbcd.prompting.prompt import Prompt
from gbcd.prompting.tokens import EncodedPrompt
from training.tokenizer import build_tokenizer


def random_pairs(n: int, length: int, vocab: int) -> list[EncodedPrompt]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab, (2, n, length), generator=generator).tolist()
    return [
        EncodedPrompt(Prompt(str(i), "ioi", "t", "", (" a",)), tuple(clean), (0,), (1,), None, tuple(other))
        for i, (clean, other) in enumerate(zip(*ids, strict=True))
    ]


def seconds(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--batch", type=int, default=32)
    asked = parser.parse_args()
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config())
    loaded = prepared("random gpt2", model, build_tokenizer(1024))
    encoded = random_pairs(asked.prompts, asked.length, model.config.vocab_size)
    pairs, metric = pair_up(encoded, asked.batch), metric_for("logit_difference", encoded, model.device)
    places = points(loaded.sites, loaded.components, "node")
    engine = Engine(loaded, ["inverse_logits"], asked.batch)

    @torch.no_grad()
    def forward() -> None:
        for batch in pairs.batches:
            model(batch.ids, use_cache=False, logits_to_keep=1)

    formula = {"gradient scores": 2.0, "all attributions": 11.0}
    runs: dict[str, Callable[[], object]] = {
        "gradient scores": lambda: engine.compute(encoded),
        "all attributions": lambda: attribute(loaded, pairs, places, metric, with_direct=True),
        "resample ablation": lambda: formula.update(
            {"resample ablation": measure_effects(loaded, pairs, places, metric, ["resample"]).cost["resample"]}
        ),
    }
    forward()
    units, times = [seconds(forward)], dict[str, float]()
    for name, run in runs.items():
        times[name] = seconds(run)
        units.append(seconds(forward))
    unit = statistics.median(units)
    setting = {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    shape = {"prompts": asked.prompts, "T": asked.length, "batch": asked.batch, "nodes": len(places)}
    print(json.dumps({**setting, **shape, "forward_seconds": unit, "forward_spread": [min(units), max(units)]}))
    for name, taken in times.items():
        print(json.dumps({"name": name, "seconds": taken, "measured": taken / unit, "formula": formula[name]}))


if __name__ == "__main__":
    main()
