"""The command line: flags and files become a `Study`; `terminal.py` says what errors become.

What takes long to import is imported by the command that needs it, so that `--help` is instant.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from gbcd import cli_options as options
from gbcd.doctor import doctor
from gbcd.errors import Incomplete
from gbcd.first_study import init
from gbcd.job.parts import folders
from gbcd.report.command import report
from gbcd.report.command import write as write_report
from gbcd.terminal import console, exit_status, hush_libraries, say
from gbcd.tracr.command import compile_tracr
from gbcd.verify_command import verify

app = typer.Typer(
    help="Which attention heads and MLPs carry a behaviour: gradient norms per component, over thousands of prompts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


#: Chapters of `gbcd --help`.
START, RUN, READ, MODELS = "Start here", "Run a study", "Read what it found", "Models"


class Listed(StrEnum):
    """What `gbcd list` can list."""

    TASKS = "tasks"
    WRONG_ANSWERS = "wrong-answers"


app.command(epilog="Example: gbcd init study.toml", rich_help_panel=START)(init)
app.command(epilog="Example: gbcd doctor --model reference --out results", rich_help_panel=START)(doctor)


@app.command(
    epilog="Example: gbcd run --task ioi --model reference --prompts 2000 --out results/ioi", rich_help_panel=RUN
)
def run(
    study: options.StudyFile = None,
    task: options.Tasks = None,
    model: options.Model = None,
    prompts: options.Prompts = None,
    wrong_answer: options.WrongAnswers = None,
    embedding_model: options.EmbeddingModel = None,
    seed: options.Seed = None,
    out: options.Out = None,
    workers: options.Workers = None,
    device: options.Device = None,
    dtype: options.DType = None,
    shard_size: options.ShardSize = None,
    batch_size: options.BatchSize = None,
) -> None:
    """Run a study, or go on with one that was interrupted."""
    with exit_status():
        asked = options.asked_study(
            study,
            tasks=task,
            model=model,
            prompts=prompts,
            wrong_answers=wrong_answer,
            embedding_model=embedding_model,
            seed=seed,
            out=out,
            workers=workers,
            device=device,
            dtype=dtype,
            shard_size=shard_size,
            batch_size=batch_size,
        )
        hush_libraries()
        from gbcd.closing import closing_summary, unfinished
        from gbcd.run import run_study

        runs = run_study(asked, console)
        closing_summary(runs, asked.out, console)
        if any(one.summary is not None for one in runs):
            write_report(asked.out)
        if left := unfinished(runs):
            raise Incomplete(left)


@app.command(epilog="Example: gbcd plan jobs/studies/ioi.toml --out results/ioi", rich_help_panel=RUN)
def plan(
    study: options.StudyFile = None,
    task: options.Tasks = None,
    model: options.Model = None,
    prompts: options.Prompts = None,
    wrong_answer: options.WrongAnswers = None,
    embedding_model: options.EmbeddingModel = None,
    seed: options.Seed = None,
    out: options.Out = None,
    device: options.Device = None,
    dtype: options.DType = None,
    shard_size: options.ShardSize = None,
    batch_size: options.BatchSize = None,
) -> None:
    """Draw and check the prompts of a study and store its plan, without computing."""
    with exit_status():
        asked = options.asked_study(
            study,
            tasks=task,
            model=model,
            prompts=prompts,
            wrong_answers=wrong_answer,
            embedding_model=embedding_model,
            seed=seed,
            out=out,
            workers=None,
            device=device,
            dtype=dtype,
            shard_size=shard_size,
            batch_size=batch_size,
        )
        hush_libraries()
        from gbcd.job.planning import open_plans
        from gbcd.run import device_of

        for one in open_plans(asked, device_of(asked)):
            settings = one.plan.study
            shards = f"{len(one.plan.shards):,} shards of up to {settings.shard_size:,}"
            how = f"on {settings.device}, in batches of {settings.batch_size:,}, centred by {settings.centering}"
            for line in (f"{one.plan.n_prompts:,} prompts in {shards}, {how}", *one.shortfalls):
                say(line)
            say(f"Plan: {one.store.location}/plan.json. `gbcd run` with the same study computes it.")


@app.command(epilog="Example: gbcd status results/ioi", rich_help_panel=RUN)
def status(out: options.Results) -> None:
    """Say how far a run is; works while it runs, from anywhere that reaches its folder."""
    with exit_status():
        from gbcd.job.standing import folder_standing, show

        for folder in folders(out):
            show(folder_standing(folder), console)


app.command(epilog="Example: gbcd verify results/ioi --repair", rich_help_panel=RUN)(verify)


@app.command(epilog="Example: gbcd compact results/ioi", rich_help_panel=RUN)
def compact(out: options.Results) -> None:
    """Merge small files into larger ones, also while others read or write; removes replaced ones after an hour."""
    with exit_status():
        from gbcd.job.compaction import compact as merge

        for folder in folders(out):
            done = merge(folder)
            say(f"merged   {done.shards:,} shards into {done.groups:,} files of each table")
            say(f"removed  {done.removed:,} files; {done.waiting:,} replaced ones stay for whoever reads them now")


@app.command(epilog="Example: gbcd reduce results/ioi", rich_help_panel=READ)
def reduce(out: options.Results) -> None:
    """Reduce what is committed to summary.parquet: statistics per component, ranked."""
    with exit_status():
        from gbcd.reduction.reduce import reduce as summarise

        for folder in folders(out):
            say(f"{folder}/summary.parquet: {summarise(folder).height:,} rows")


@app.command(epilog="Example: gbcd evaluate results/ioi", rich_help_panel=READ)
def evaluate(out: options.Results, pairs: options.Pairs = 128) -> None:
    """Hold a finished study against what components do when they are ablated, and against other methods."""
    with exit_status():
        hush_libraries()
        from gbcd.evaluation.evaluate import evaluate as measure
        from gbcd.evaluation.view import show_evaluation

        for folder in folders(out):
            show_evaluation(measure(folder, pairs), folder, console)
        write_report(out)


@app.command(epilog="Example: gbcd show ioi --model reference -n 5", rich_help_panel=START)
def show(
    task: Annotated[str | None, typer.Argument(metavar="[TASK]", help="Task to draw prompts from.")] = None,
    prompts: Annotated[str | None, typer.Option("--prompts", metavar="FILE", help="Or a file of your own.")] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="A hub name or a directory; without it the task's own, or `reference`."),
    ] = None,
    number: Annotated[int, typer.Option("-n", help="How many prompts.")] = 5,
    seed: Annotated[int, typer.Option("--seed", help="Fixes which prompts are drawn.")] = 0,
    embedding_model: options.EmbeddingModel = None,
) -> None:
    """Print prompts as tokens, with answers, what the model predicts and what each wrong answer pulls towards."""
    with exit_status():
        hush_libraries()
        from gbcd import show as shown
        from gbcd.architectures import models

        loaded = models.load(model or shown.default_model(task), "cpu")
        shown.show(shown.chosen(loaded, task, prompts, number, seed), loaded, embedding_model, console)


@app.command("list", epilog="Example: gbcd list tasks", rich_help_panel=START)
def list_(what: Listed) -> None:
    """List the tasks, or the definitions of the wrong answer."""
    with exit_status():
        from gbcd import tasks, wrong_answers

        if what is Listed.TASKS:
            entries = {name: tasks.get(name).description.splitlines()[0] for name in tasks.names()}
        else:
            entries = {name: wrong_answers.get(name).summary for name in wrong_answers.names()}
        width = max(map(len, entries)) + 2
        for name, line in entries.items():
            say(f"{name:<{width}}{line}")


app.command(epilog="Example: gbcd report results/ioi --png figures", rich_help_panel=READ)(report)
app.command(
    "compile-tracr",
    epilog='Example: gbcd compile-tracr gbcd.tracr.programs:reverse --vocab "1 2 3" --max-length 5 --out reverse',
    rich_help_panel=MODELS,
)(compile_tracr)
