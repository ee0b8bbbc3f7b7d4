"""Trains the reference model: `python -m training.train --seed 0 --out DIR`.

Builds the tokenizer, writes the corpus, trains a GPT-2 on it with AdamW (linear warm-up, cosine decay), measures the
held-out quality and saves model (safetensors), tokenizer and `training.json` (versions, settings, loss curve,
quality). The seed fixes the weights' start and the text; on one machine and number of threads a second run gives the
same model.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import tokenizers
import torch
import transformers
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from training import corpus, held_out, quality
from training.tokenizer import build_tokenizer

TASKS = ("ioi", "greater_than", "docstring", "induction")
REPORT_EVERY, MEASURE_EVERY = 50, 500


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that decides the result, besides the data; `steps` and `learning_rates` by lesson."""

    seed: int = 0
    steps: tuple[int, ...] = (2500, 2400)
    layers: int = 4
    heads: int = 8
    width: int = 192
    context: int = 96
    row_length: int = 96
    rows_a_step: int = 24
    learning_rates: tuple[float, ...] = (2e-3, 1.5e-3)
    initial_std: float = 0.02
    warm_up: int = 100
    weight_decay: float = 0.05
    beta_2: float = 0.98
    held_out_prompts: int = 400


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train the reference model.")
    parser.add_argument("--seed", type=int, default=0, help="start of the weights and choice of the text")
    parser.add_argument("--out", type=Path, required=True, help="folder for model, tokenizer and training.json")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(Settings(seed=arguments.seed), arguments.out)


def train(settings: Settings, out: Path) -> None:
    """Train one model and write it to `out`."""
    began = time.time()
    torch.manual_seed(settings.seed)
    tokenizer = build_tokenizer(settings.context)
    model = GPT2LMHeadModel(_config(settings, len(tokenizer)))
    with torch.no_grad():
        model.transformer.wpe.weight.copy_(_sinusoids(settings))
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens", flush=True)
    curve = [
        record for lesson in range(len(corpus.LESSONS)) for record in _fit(model, tokenizer, lesson, settings, began)
    ]
    model.eval()
    measured = _held_out_quality(model, tokenizer, settings.held_out_prompts)
    print(json.dumps(measured, indent=1))
    _save(
        model,
        tokenizer,
        out,
        {"settings": asdict(settings), "loss": curve, "quality": measured, "seconds": round(time.time() - began)},
    )


def _config(settings: Settings, vocabulary: int) -> GPT2Config:
    return GPT2Config(
        vocab_size=vocabulary,
        n_positions=settings.context,
        n_embd=settings.width,
        n_layer=settings.layers,
        n_head=settings.heads,
        initializer_range=settings.initial_std,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )


def _sinusoids(settings: Settings) -> Float[Tensor, "pos d"]:
    """Start of the position embeddings, which then learn like any weight.

    From sinusoids (Vaswani et al. 2017, section 3.5) one linear map reaches the previous token at every position at
    once; from noise each position has to be learned on its own, and induction comes several times later.
    """
    half = settings.width // 2
    frequencies = torch.pi * (torch.arange(half) + 0.5) / half
    angles = torch.arange(settings.context).unsqueeze(1) * frequencies
    return settings.initial_std * math.sqrt(2) * torch.cat([angles.sin(), angles.cos()], dim=1)


def _fit(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, lesson: int, settings: Settings, began: float
) -> list[dict[str, float]]:
    """Teach one lesson; returns the loss every 50 steps."""
    steps, peak = settings.steps[lesson], settings.learning_rates[lesson]
    count = steps * settings.rows_a_step * settings.row_length // 20
    written = corpus.documents(tokenizer, count, settings.seed, lesson)
    decayed = [weight for weight in model.parameters() if weight.ndim == 2]
    rest = [weight for weight in model.parameters() if weight.ndim != 2]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, settings.beta_2))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate(step, steps, settings.warm_up))
    curve: list[dict[str, float]] = []
    model.train()
    for step, batch in enumerate(_batches(tokenizer, written, steps, settings)):
        loss, answers_right = _loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % REPORT_EVERY == 0 or step == steps - 1:
            record = {
                "lesson": lesson,
                "step": step,
                "loss": round(loss.item(), 4),
                "answers_right": round(answers_right.item(), 4),
            }
            print(json.dumps(record), _since(began), flush=True)
            curve.append(record)
        if step and step % MEASURE_EVERY == 0:
            found = _held_out_quality(model.eval(), tokenizer, 60)
            print(
                "held out:", json.dumps({name: round(task["accuracy"], 3) for name, task in found.items()}), flush=True
            )
            model.train()
    return curve


def _batches(
    tokenizer: PreTrainedTokenizerFast, written: list[corpus.Document], steps: int, settings: Settings
) -> Iterator[list[corpus.Row]]:
    """Exactly `steps` batches; the text is read again should it end first."""
    rng = Random(f"rows/{settings.seed}")
    step, batch = 0, list[corpus.Row]()
    while True:
        for row in corpus.rows(tokenizer, written, settings.row_length, rng):
            batch.append(row)
            if len(batch) == settings.rows_a_step:
                yield batch
                step, batch = step + 1, []
                if step == steps:
                    return


def _loss(model: GPT2LMHeadModel, batch: list[corpus.Row]) -> tuple[Tensor, Tensor]:
    """Weighted mean cross-entropy of the next token, and the share of answers that are the most likely token."""
    ids, positions = torch.tensor([row.ids for row in batch]), torch.tensor([row.positions for row in batch])
    weights = torch.tensor([row.weights for row in batch])[:, 1:]
    logits = model(input_ids=ids, position_ids=positions, attention_mask=_own_document(positions)).logits[:, :-1]
    targets = ids[:, 1:]
    losses = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    losses = _any_answer(losses, logits, batch)
    answers = weights > 1
    right = ((logits.argmax(-1) == targets) & answers).sum() / answers.sum()
    return (losses * weights).sum() / weights.sum(), right


def _any_answer(
    losses: Float[Tensor, "batch pos"], logits: Float[Tensor, "batch pos vocab"], batch: list[corpus.Row]
) -> Float[Tensor, "batch pos"]:
    """Where several tokens are right, their mean cross-entropy: what writing each of them in turn would come to."""
    several = [(number, place - 1, ids) for number, row in enumerate(batch) for place, ids in row.answers]
    if not several:
        return losses
    rows, places, ids = zip(*several, strict=True)
    wanted = torch.zeros(len(several), logits.shape[-1])
    for number, some in enumerate(ids):
        wanted[number, some] = 1 / len(some)
    at = (torch.tensor(rows), torch.tensor(places))
    return losses.index_put(at, functional.cross_entropy(logits[at], wanted, reduction="none"))


def _own_document(positions: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch 1 pos pos"]:
    """What is added to attention's scores: a token sees earlier tokens of its own document and nothing else."""
    document = (positions == 0).cumsum(1)
    seen = (document.unsqueeze(2) == document.unsqueeze(1)).tril()
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min).unsqueeze(1)


def _learning_rate(step: int, steps: int, warm_up: int) -> float:
    if step < warm_up:
        return (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _held_out_quality(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, n: int
) -> dict[str, dict[str, float]]:
    return {
        name: asdict(quality.measure(model, tokenizer, held_out.held_out_prompts(name, tokenizer, n, seed=10_000)))
        for name in TASKS
    }


def _save(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, out: Path, record: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }
    record = {"versions": versions, "threads": torch.get_num_threads(), "parameters": model.num_parameters(), **record}
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"written to {out}")


def _since(began: float) -> str:
    return f"{time.time() - began:.0f} s"


if __name__ == "__main__":
    main()
