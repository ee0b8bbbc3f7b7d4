"""How well the shipped models solve the six tasks, and what a study of all of them writes: the tables of docs/tasks.md.

    gbcd run jobs/studies/all_tasks.toml
    python benchmarks/tasks.py --out results/all_tasks

Prompts are drawn as a study draws them. The metric is the task's own, its mean over prompts, higher better (for the
negative log-probability and the squared error that is minus the value); `right` is the share of prompts on which the
model's first choice is an answer or, for a program, every position is right. Without `--out` only the models are run.
"""

from __future__ import annotations

import argparse

import polars as pl
import torch
from transformers import PreTrainedTokenizerBase

import gbcd
from gbcd import tasks
from gbcd.engine.engine import packed_for
from gbcd.evaluation.metrics import metric_for
from gbcd.models import load as models
from gbcd.models.load import LoadedModel
from gbcd.prompting.outputs import space_of
from gbcd.prompting.tokens import EncodedPrompt, encode
from gbcd.prompting.vocabulary import Vocabulary
from gbcd.wrong_answers.output_targets import output_context, readings, right_answer

BATCH = 50


def right(loaded: LoadedModel, batch: list[EncodedPrompt], logits: torch.Tensor) -> list[bool]:
    space = space_of(loaded.tokenizer)
    if space is not None:
        context = output_context(batch, logits, space)
        return readings(context, right_answer(context))["correct"]
    chosen = logits.argmax(1).tolist()
    return [token in prompt.answer_ids for token, prompt in zip(chosen, batch, strict=True)]


def solved(task: tasks.Task, loaded: LoadedModel, n: int) -> dict[str, object]:
    n = min(n, task.capacity(loaded.tokenizer))
    prompts = encode(tasks.draw(task.name, loaded.tokenizer, n, seed=0), loaded.tokenizer, loaded.context)
    space, values, correct = space_of(loaded.tokenizer), list[float](), list[bool]()
    for start in range(0, n, BATCH):
        batch = prompts[start : start + BATCH]
        logits = loaded.decoder.run(packed_for(loaded, [(prompt.ids,) for prompt in batch])).logits
        read = logits if space is not None else logits[:, 0]
        metric = metric_for(task.metric, batch, loaded.device, space)
        values += metric(read, list(range(len(batch)))).tolist()
        correct += right(loaded, batch, read)
    return {
        "task": f"`{task.name}`",
        "model": f"`{loaded.name}`",
        "metric": task.metric.replace("_", " "),
        "mean": f"{sum(values) / n:.3g}",
        "lowest 5 %": f"{sorted(values)[n // 20]:.3g}",
        "right": f"{sum(correct) / n:.1%}",
        **space_of_prompts(task, loaded.tokenizer),
        "prompts": f"{n:,}",
    }


def space_of_prompts(task: tasks.Task, tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    families = list(task.families(Vocabulary(tokenizer)))
    size = sum(family.size for family in families)
    return {"templates": len(families), "distinct prompts": f"{size:,}" if size < 10**9 else f"{size:.1e}"}


def written(out: str) -> list[dict[str, object]]:
    prompts = gbcd.prompts(out).group_by("task").agg(
        pl.col("prompt_id").n_unique(), pl.col("wrong_answer").n_unique(), pl.len().alias("rows")
    ).collect()  # fmt: skip
    n_parts = gbcd.components(out).collect().height
    return [
        {
            "task": f"`{row['task']}`",
            "prompts": f"{row['prompt_id']:,}",
            "wrong answers": row["wrong_answer"],
            "rows of `prompts`": f"{row['rows']:,}",
            "parts": n_parts,
            "rows of `scan`": f"{row['rows'] * n_parts:,}",
        }
        for row in prompts.sort("rows", "task", descending=[True, False]).iter_rows(named=True)
    ]


def show(rows: list[dict[str, object]]) -> None:
    print(f"| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(map(str, row.values()))} |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1000, help="prompts per task")
    parser.add_argument("--out", help="a finished study of all tasks")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    loaded = {name: models.load(name, "cpu") for name in models.SHIPPED}
    every = sorted(map(tasks.get, tasks.names()), key=lambda task: (task.model is not None, task.name))
    show([solved(task, loaded[task.model or models.REFERENCE], asked.prompts) for task in every])
    if asked.out:
        show(written(asked.out))


if __name__ == "__main__":
    main()
