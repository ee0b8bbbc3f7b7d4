"""Flags of the command line that make a study; each has the name of the field that it sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from gbcd.study import Compute, Study, make_study, read_study

StudyFile = Annotated[Path | None, typer.Argument(metavar="STUDY.toml", help="A study file; flags win over it.")]
Tasks = Annotated[
    list[str] | None, typer.Option("--task", metavar="NAME", help="Task to draw prompts from; may be repeated.")
]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="NAME|DIR", help="`reference`, a hub name such as gpt2, or a directory."),
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
Pairs = Annotated[
    int,
    typer.Option("--pairs", metavar="N", help="Prompts per task, each with its counterfactual, to measure effects on."),
]
Results = Annotated[str, typer.Argument(metavar="OUT", help="Where a run keeps its results.")]


#: Flags of which several make a tuple, by field.
_REPEATED = {"task": "tasks", "wrong_answer": "wrong_answers"}


def asked_study(flags: Mapping[str, Any]) -> Study:
    """The study that `study`, a file, the other flags, or both describe. Flags that were not given are None.

    Raises:
        BadInput: it cannot be meant.
    """
    given = {_REPEATED.get(name, name): value for name, value in flags.items() if value is not None}
    file, prompts = given.pop("study", None), given.pop("prompts", None)
    if prompts is not None:
        is_number = prompts.removeprefix("-").isdigit()
        given |= {"prompts_per_task": int(prompts)} if is_number else {"prompts": prompts}
    if compute := {name: given.pop(name) for name in Compute.model_fields if name in given}:
        given["compute"] = compute
    return read_study(file, given) if file else make_study(given)
