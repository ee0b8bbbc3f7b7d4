"""What truth costs, and what estimates cost: measured in forward passes, on full-size GPT-2 with random weights.

    python benchmarks/effects.py > benchmarks/results/effects_cpu.jsonl

A forward pass over all prompts, with logits at the answer alone, is timed before, between and after; its median is the
unit. `resample ablation` is of all nodes. `formula` is what `gbcd evaluate` reports as cost, `measured` the time
divided by the unit. Times are those of the processor, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gbcd.engine.engine import Engine, packed_for
from gbcd.evaluation.baselines import every_baseline
from gbcd.evaluation.metrics import metric_for
from gbcd.evaluation.patching import PatchedBatch
from gbcd.evaluation.places import places_of
from gbcd.evaluation.score_context import ScoreContext
from gbcd.evaluation.work import circuit_components, circuit_metrics
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
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--length", type=int, default=16)
    asked = parser.parse_args()
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config())
    loaded = prepared("random gpt2", model, build_tokenizer(1024))
    prompts = random_pairs(asked.prompts, asked.length, model.config.vocab_size)
    metric = metric_for("logit_difference", prompts, model.device)
    components, places = circuit_components(loaded, "node"), places_of(loaded.components, "node")
    engine, packed = Engine(loaded, ["inverse_logits"]), packed_for(loaded, [(prompt.ids,) for prompt in prompts])
    one_circuit = [list(range(0, 32491, 2))]

    def baselines() -> None:
        context = ScoreContext(loaded, prompts, components, places, metric, with_edges=True)
        for one in every_baseline().values():
            one.values(context)
            if one.edges is not None:
                one.edges(context)

    def forward() -> None:
        loaded.decoder.run(packed)

    formula = {
        "gradient scores": 3.0,
        "all baselines": 25.0,
        "resample ablation": 2 + 13 * 6.5,
        "a circuit of edges": 3.0,
    }
    runs: dict[str, Callable[[], object]] = {
        "gradient scores": lambda: engine.compute(prompts),
        "all baselines": baselines,
        "resample ablation": lambda: PatchedBatch(loaded, prompts, places, metric).drops(places, "resample"),
        "a circuit of edges": lambda: circuit_metrics(loaded, prompts, metric, one_circuit),
    }
    forward()
    units, times = [seconds(forward)], dict[str, float]()
    for name, run in runs.items():
        times[name] = seconds(run)
        units.append(seconds(forward))
    unit = statistics.median(units)
    setting = {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    shape = {"prompts": asked.prompts, "T": asked.length, "nodes": len(places)}
    print(json.dumps({**setting, **shape, "forward_seconds": unit, "forward_spread": [min(units), max(units)]}))
    for name, taken in times.items():
        print(json.dumps({"name": name, "seconds": taken, "measured": taken / unit, "formula": formula[name]}))


if __name__ == "__main__":
    main()
