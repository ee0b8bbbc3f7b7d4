"""`gbcd init`: a study file to start from, every choice written out with its default and what it means."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from gbcd.commands.terminal import exit_status, say
from gbcd.errors import BadInput

File = Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The file to write.")]

STUDY = """\
# A study for `gbcd run {file}`. Lines that are commented out show the default.

# What is studied: "reference" (shipped), a name on the model hub such as "gpt2", or a directory.
model = "reference"

# What it is studied on: tasks of `gbcd list tasks`, or instead of them a file of your own prompts, one JSON object a
# line with "prompt" and "answer".
tasks = ["ioi"]
prompts_per_task = 2000
# prompts = "my_prompts.jsonl"

# What the loss pulls towards; `gbcd list wrong-answers` explains them, `gbcd show ioi` shows what each picks.
# Where none is given: "margin" where every prompt has a wrong answer of its own, else "inverse_logits".
# wrong_answers = ["margin", "logit_difference"]

# Python files with tasks or wrong answers of your own.
# definitions = ["mine.py"]

# Fixes which prompts are drawn.
# seed = 0

# Prompts per task over which the mean activations are taken that centred norms subtract.
# calibration_prompts = 512

# What those means are over: prompts of the same "template" at the same position, all at the same "position", or "auto".
# centering = "auto"

# What each prompt is compared with: its own "counterfactual", a "partner" (another prompt of its template and
# length), or "auto": the counterfactual where there is one of equal length, else a partner.
# reference = "auto"

# Rules of the backward pass: "plain" gradients, "relp", "gim" or "combined".
# rules = "plain"

# At how many points between reference and prompt the gradient of attributions is averaged (integrated gradients).
# ig_steps = 1

# Compute and store these alone, and grad_norm; the others are null. Without the key, all of them.
# statistics = ["grad_norm", "centered_grad_norm", "contrast_norm", "taylor", "mean_attribution", "attribution"]

# Score edges between nodes too.
# edges = false

# Score the neurons of these MLPs too.
# neurons = ["m3"]

# Leave out prompts that the model does not solve.
# only_solved = false

# A beginning-of-text token before each prompt: "always", "never", or "auto", as the tokenizer has it.
# bos = "auto"

# Only for the wrong answer "semantic": the model that tells how far apart two answers are in meaning.
# embedding_model = "sentence-transformers/all-MiniLM-L6-v2"

# Where results go: a folder, s3://bucket/prefix or gs://bucket/prefix.
out = "results/first"

[compute]
# Ray workers, each with a copy of the model; 0 computes in this process. Never changes a number.
# workers = 2
# "cpu", "cuda", or "auto": a GPU where there is one, or the cluster can start one.
# device = "auto"
# dtype = "float32"
# Prompts per forward pass, and per shard (what is committed at once; whole batches). "auto": settled in the plan,
# shards by the time that a batch takes.
# batch_size = "auto"
# shard_size = "auto"
# Processor threads of each worker.
# threads = 1
# GPUs that each worker holds, where it computes on one: 0.5 puts two workers on a GPU.
# gpus_per_worker = 1.0
"""


def init(file: File = Path("study.toml")) -> None:
    """Write a study file with every choice explained, ready to run."""
    with exit_status():
        try:
            with file.open("x", encoding="utf-8") as stream:
                stream.write(STUDY.replace("{file}", str(file)))
        except FileExistsError:
            raise BadInput(f"{str(file)!r} is there already: give another name") from None
        except OSError as error:
            raise BadInput(f"{str(file)!r} cannot be written: {error}") from error
        say("Study", str(file))
        say("Next", f"gbcd run {quote(str(file))}")
