"""Flags of the command line that make a study; each has the name of the field that it sets."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from gbcd.errors import BadInput
from gbcd.study import Compute, Study, make_study, read_study

EmbeddingModel = Annotated[
    str | None,
    typer.Option("--embedding-model", metavar="NAME|DIR", help="For `semantic`: a hub name, or a directory."),
]
Definitions = Annotated[
    list[str] | None,
    typer.Option("--definitions", metavar="FILE.py", help="Your own tasks, wrong answers, scores; may be repeated."),
]
Score = Annotated[
    str | None, typer.Option("--score", metavar="NAME", help="Rank by this score where enough prompts have it.")
]
Workers = Annotated[int | None, typer.Option("--workers", metavar="N", help="Ray workers; 0 computes in this process.")]
Device = Annotated[str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda or auto.")]
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


def _flag(kind: Any, name: str, metavar: str | None, meaning: str) -> Any:
    return Annotated[kind | None, typer.Option(name, metavar=metavar, help=meaning)]


_FLAGS = {
    "study": Annotated[
        list[Path] | None, typer.Argument(metavar="STUDY.toml ...", help="Study files; flags win over them.")
    ],
    "tasks": _flag(list[str], "--task", "NAME", "Task to draw prompts from; may be repeated."),
    "model": _flag(str, "--model", "NAME|PATH", "`reference`, a hub name such as gpt2, a directory or a GGUF file."),
    "prompts": _flag(str, "--prompts", "N|FILE", "Prompts per task, or a file of your own prompts."),
    "wrong_answers": _flag(list[str], "--wrong-answer", "NAME", "Definition of the wrong answer; may be repeated."),
    "definitions": Definitions,
    "embedding_model": EmbeddingModel,
    "seed": _flag(int, "--seed", "N", "Fixes which prompts are drawn."),
    "edges": _flag(bool, "--edges", None, "Score edges between nodes too."),
    "neurons": _flag(str, "--neurons", "M3,M4", "MLPs whose neurons are scored too, for example m3,m4."),
    "ig_steps": _flag(int, "--ig-steps", "N", "Average the gradient over N points from reference to prompt."),
    "out": _flag(str, "--out", "FOLDER", "Folder, s3://bucket/prefix or gs://bucket/prefix."),
    "device": Device,
    "dtype": _flag(str, "--dtype", "NAME", "float32, float64 or bfloat16."),
    "shard_size": _flag(int, "--shard-size", "N", "Prompts per shard."),
    "batch_size": _flag(int, "--batch-size", "N", "Prompts per forward pass."),
}
"""Flags that make a study, by the field that they set."""


def makes_studies(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` the flags that make a study, which it takes as keywords, in front of its own."""
    own = inspect.signature(command, eval_str=True).parameters.values()
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    flags = [inspect.Parameter(name, kind, default=None, annotation=of) for name, of in _FLAGS.items()]
    parameters = [*flags, *(one for one in own if one.kind is kind)]
    command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    return command


def asked_studies(flags: Mapping[str, Any]) -> list[Study]:
    """The studies that `study`, a list of files, the other flags, or both describe. Flags that were not given are None.

    Raises:
        BadInput: one of them cannot be meant, or two have one folder.
    """
    given = {name: value for name, value in flags.items() if value is not None}
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
