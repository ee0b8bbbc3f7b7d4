"""The command line: flags and files become a `Study`, errors become one sentence and an exit status.

0 done; 2 bad input, nothing written; 3 incomplete, the same command goes on; 130 interrupted, the same command goes on.
What takes long to import is imported by the command that needs it, so that `--help` is instant.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from gbcd.errors import BAD_INPUT, INCOMPLETE, INTERRUPTED, BadInput, Incomplete

app = typer.Typer(
    help="Which attention heads and MLPs carry a behaviour: gradient norms per component, over thousands of prompts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

StudyFile = Annotated[Path | None, typer.Argument(metavar="[STUDY.toml]", help="A study file; flags win over it.")]
Tasks = Annotated[list[str] | None, typer.Option("--task", help="Task to draw prompts from; may be repeated.")]
Model = Annotated[str | None, typer.Option("--model", help="`reference`, a hub name such as gpt2, or a directory.")]
Prompts = Annotated[int | None, typer.Option("--prompts", help="Prompts per task.")]
WrongAnswers = Annotated[
    list[str] | None, typer.Option("--wrong-answer", help="Definition of the wrong answer; may be repeated.")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Fixes which prompts are drawn.")]
Out = Annotated[str | None, typer.Option("--out", help="Folder, s3://bucket/prefix or gs://bucket/prefix.")]
Workers = Annotated[int | None, typer.Option("--workers", help="Ray workers; 0 computes in this process.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda or auto.")]
ShardSize = Annotated[int | None, typer.Option("--shard-size", help="Prompts per shard.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="Prompts per forward pass.")]
Results = Annotated[str, typer.Argument(metavar="OUT", help="Results of a run.")]


@contextmanager
def _exit_status() -> Iterator[None]:
    """Turn what a reader can act on into a message and a status; anything else is a bug and shows its trace."""
    try:
        yield
    except BadInput as error:
        errors.print(f"[bold red]error:[/] {_plain(error)}", soft_wrap=True)
        raise typer.Exit(BAD_INPUT) from None
    except Incomplete as error:
        errors.print(f"[bold yellow]incomplete:[/] {_plain(error)}\nThe same command goes on from here.", soft_wrap=True)
        raise typer.Exit(INCOMPLETE) from None
    except KeyboardInterrupt:
        errors.print("[bold yellow]interrupted:[/] what is committed is kept; the same command goes on from here.")
        raise typer.Exit(INTERRUPTED) from None


@app.command(epilog="Example: gbcd run --task ioi --model reference --prompts 2000 --out results/ioi")
def run(
    study: StudyFile = None,
    task: Tasks = None,
    model: Model = None,
    prompts: Prompts = None,
    wrong_answer: WrongAnswers = None,
    seed: Seed = None,
    out: Out = None,
    workers: Workers = None,
    device: Device = None,
    shard_size: ShardSize = None,
    batch_size: BatchSize = None,
) -> None:
    """Run a study, or go on with one that was interrupted."""
    with _exit_status():
        compute = {"workers": workers, "device": device, "shard_size": shard_size, "batch_size": batch_size}
        fields = {
            "tasks": task,
            "model": model,
            "prompts_per_task": prompts,
            "wrong_answers": wrong_answer,
            "seed": seed,
            "out": out,
            "compute": _given(compute) or None,
        }
        from gbcd import run as runs
        from gbcd.closing import closing_summary
        from gbcd.study import make_study, read_study

        _hush_libraries()
        asked = read_study(study, _given(fields)) if study else make_study(_given(fields))
        outcome = runs.run_study(asked, console)
        closing_summary(outcome, asked.out, console)
        if outcome.missing:
            raise Incomplete(f"{len(outcome.missing)} of {len(outcome.plan.shards)} shards are missing.")


def main() -> None:
    """Entry point of the `gbcd` program."""
    app()


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _plain(error: BaseException) -> str:
    """Rich reads square brackets as markup; an error's text is not markup."""
    from rich.markup import escape

    return escape(str(error))


def _hush_libraries() -> None:
    """Keep transformers' progress bars out of ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(app())
