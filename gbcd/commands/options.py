"""Flags of the command line that make a study; each has the name of the field that it sets."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from gbcd.errors import BadInput
from gbcd.study import Compute, Study, make_study, read_study

StudyFiles = Annotated[
    list[Path] | None, typer.Argument(metavar="STUDY.toml ...", help="Study files; flags win over them.")
]
Tasks = Annotated[
    list[str] | None, typer.Option("--task", metavar="NAME", help="Task to draw prompts from; may be repeated.")
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="NAME|PATH", help="`reference`, a hub name such as gpt2, a directory or a GGUF file."
    ),
]
Prompts = Annotated[
    str | None, typer.Option("--prompts", metavar="N|FILE", help="Prompts per task, or a file of your own prompts.")
]
WrongAnswers = Annotated[
    list[str] | None,
    typer.Option("--wrong-answer", metavar="NAME", help="Definition of the wrong answer; may be repeated."),
]
EmbeddingModel = Annotated[
    str | None,
    typer.Option("--embedding-model", metavar="NAME|DIR", help="For `semantic`: a hub name, or a directory."),
]
Definitions = Annotated[
    list[str] | None,
    typer.Option("--definitions", metavar="FILE.py", help="Your own tasks, wrong answers, scores; may be repeated."),
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Fixes which prompts are drawn.")]
Edges = Annotated[bool | None, typer.Option("--edges", help="Score edges between nodes too.")]
Neurons = Annotated[
    str | None, typer.Option("--neurons", metavar="M3,M4", help="MLPs whose neurons are scored too, for example m3,m4.")
]
IgSteps = Annotated[
    int | None,
    typer.Option("--ig-steps", metavar="N", help="Average the gradient over N points from reference to prompt."),
]
Score = Annotated[
    str | None, typer.Option("--score", metavar="NAME", help="Rank by this score where enough prompts have it.")
]
Out = Annotated[
    str | None, typer.Option("--out", metavar="FOLDER", help="Folder, s3://bucket/prefix or gs://bucket/prefix.")
]
Workers = Annotated[int | None, typer.Option("--workers", metavar="N", help="Ray workers; 0 computes in this process.")]
Device = Annotated[str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda or auto.")]
DType = Annotated[str | None, typer.Option("--dtype", metavar="NAME", help="float32, float64 or bfloat16.")]
ShardSize = Annotated[int | None, typer.Option("--shard-size", metavar="N", help="Prompts per shard.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", metavar="N", help="Prompts per forward pass.")]
Part = Annotated[
    str | None,
    typer.Option(
        "--slice",
        metavar="I/N",
        help="Compute every N-th shard, from the I-th on; by default as Slurm or SkyPilot say.",
    ),
]
Pairs = Annotated[
    int,
    typer.Option("--pairs", metavar="N", help="Prompts per task, each with its counterfactual, to measure effects on."),
]
Results = Annotated[str, typer.Argument(metavar="OUT", help="Where a run keeps its results.")]


#: Flags of which several make a tuple, by field.
_REPEATED = {"task": "tasks", "wrong_answer": "wrong_answers"}


def asked_studies(flags: Mapping[str, Any]) -> list[Study]:
    """The studies that `study`, a list of files, the other flags, or both describe. Flags that were not given are None.

    Raises:
        BadInput: one of them cannot be meant, or two have one folder.
    """
    given = {_REPEATED.get(name, name): value for name, value in flags.items() if value is not None}
    files, prompts = given.pop("study", None), given.pop("prompts", None)
    if "neurons" in given:
        given["neurons"] = tuple(given["neurons"].split(","))
    if prompts is not None:
        number = _whole_number(prompts)
        given |= {"prompts": prompts} if number is None else {"prompts_per_task": number}
    if compute := {name: given.pop(name) for name in Compute.model_fields if name in given}:
        given["compute"] = compute
    studies = [read_study(file, given) for file in files] if files else [make_study(given)]
    if repeated := [out for out, count in Counter(study.out for study in studies).items() if count > 1]:
        raise BadInput(f"several studies have one folder, {repeated[0]!r}: each needs its own `out`")
    return studies


def _whole_number(text: str) -> int | None:
    """`2000`, `2_000`, `1e6` as a number; None for what is the name of a file."""
    if not re.fullmatch(r"[-+]?\d[\d_]*(\.\d*)?([eE][-+]?\d+)?", text):
        return None
    if not float(text).is_integer():
        raise BadInput(f"--prompts {text}: a number of prompts is a whole one")
    return int(float(text))
