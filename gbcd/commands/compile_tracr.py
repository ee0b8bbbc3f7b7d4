"""`gbcd compile-tracr`: a RASP program to a model directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gbcd.commands.terminal import console, exit_status
from gbcd.printing import counted, fact

Program = Annotated[str, typer.Argument(metavar="MODULE:PROGRAM", help="A RASP program, or a function that makes one.")]
Symbols = Annotated[
    str, typer.Option("--vocab", metavar="SYMBOLS", help="The symbols that it reads, separated by spaces.")
]
MaxLength = Annotated[int, typer.Option("--max-length", metavar="N", help="Longest input, BOS not counted.")]
Directory = Annotated[Path, typer.Option("--out", metavar="DIR", help="Directory of the model; `--model` takes it.")]


def compile_tracr(program: Program, vocab: Symbols, max_length: MaxLength, out: Directory) -> None:
    """Compile a RASP program to a transformer that can be studied like any other model."""
    with exit_status():
        from gbcd.tracr.compiling import compile_program, find_program, symbols_of, write

        compiled = compile_program(find_program(program), symbols_of(vocab), max_length)
        write(compiled, out)
        layers, inputs = compiled.model.config.n_layers, len(compiled.inputs)
        fact(console, "Model", f"{out}, {counted(layers, 'layer')}, right on all {counted(inputs, 'input')}")
        fact(console, "Next", f"gbcd run --model {out} --prompts {out}/prompts.jsonl --out results/{out.name}")
