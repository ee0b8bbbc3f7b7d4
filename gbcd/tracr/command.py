"""`gbcd compile-tracr`: a RASP program to a model directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gbcd.terminal import console, exit_status

Program = Annotated[str, typer.Argument(metavar="MODULE:PROGRAM", help="A RASP program, or a function that makes one.")]
Symbols = Annotated[str, typer.Option("--vocab", help="The symbols that it reads, separated by spaces.")]
MaxLength = Annotated[int, typer.Option("--max-length", help="Longest input, BOS not counted.")]
Directory = Annotated[Path, typer.Option("--out", help="Directory of the model; `--model` takes it.")]


def compile_tracr(program: Program, vocab: Symbols, max_length: MaxLength, out: Directory) -> None:
    """Compile a RASP program to a transformer that can be studied like any other model."""
    with exit_status():
        from gbcd.tracr.compiling import compile_program, find_program, symbols_of, write

        compiled = compile_program(find_program(program), symbols_of(vocab), max_length)
        write(compiled, out)
        console.print(
            f"{out}: {compiled.model.config.n_layers} layers, right on all {len(compiled.inputs):,} inputs; study them "
            f"with `gbcd run --model {out} --prompts {out}/prompts.jsonl`",
            markup=False,
            soft_wrap=True,
        )
