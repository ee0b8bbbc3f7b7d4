"""`gbcd run`: from a study to a report."""

from __future__ import annotations

from gbcd.commands import options
from gbcd.commands.report import write as write_report
from gbcd.commands.terminal import console, exit_status, hush_libraries
from gbcd.errors import Incomplete


def run(
    study: options.StudyFile = None,
    task: options.Tasks = None,
    model: options.Model = None,
    prompts: options.Prompts = None,
    wrong_answer: options.WrongAnswers = None,
    definitions: options.Definitions = None,
    embedding_model: options.EmbeddingModel = None,
    seed: options.Seed = None,
    out: options.Out = None,
    workers: options.Workers = None,
    device: options.Device = None,
    dtype: options.DType = None,
    shard_size: options.ShardSize = None,
    batch_size: options.BatchSize = None,
    score: options.Score = None,
) -> None:
    """Run a study, or go on with one that was interrupted."""
    flags = {name: value for name, value in locals().items() if name != "score"}
    with exit_status(resumes=True):
        asked = options.asked_study(flags)
        hush_libraries()
        from gbcd.commands.closing import closing_summary, next_step, unfinished
        from gbcd.pipeline import run_study

        runs = run_study(asked, console, score=score)
        closing_summary(runs, console)
        if any(one.summary is not None for one in runs):
            write_report(asked.out)
        next_step(asked, runs, console)
        if left := unfinished(runs):
            raise Incomplete(left)
