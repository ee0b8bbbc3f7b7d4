"""`gbcd plan`: all that a run does before it computes."""

from __future__ import annotations

from gbcd.commands import options
from gbcd.commands.terminal import console, exit_status, hush_libraries, say
from gbcd.printing import counted, line


def plan(
    study: options.StudyFile = None,
    task: options.Tasks = None,
    model: options.Model = None,
    prompts: options.Prompts = None,
    wrong_answer: options.WrongAnswers = None,
    definitions: options.Definitions = None,
    embedding_model: options.EmbeddingModel = None,
    seed: options.Seed = None,
    out: options.Out = None,
    device: options.Device = None,
    dtype: options.DType = None,
    shard_size: options.ShardSize = None,
    batch_size: options.BatchSize = None,
) -> None:
    """Draw and check the prompts of a study and store its plan, without computing."""
    flags = locals()
    with exit_status(resumes=True):
        asked = options.asked_study(flags)
        hush_libraries()
        from gbcd.pipeline import device_of
        from gbcd.run.planning import open_plans

        for one in open_plans(asked, device_of(asked)):
            settings = one.plan.study
            say("Prompts", f"{one.plan.n_prompts:,} for {settings.model}, centred by {settings.centering}")
            say("Shards", f"{len(one.plan.shards):,} of up to {counted(settings.shard_size, 'prompt')}")
            say("Compute", f"on {settings.device}, in batches of {settings.batch_size:,}")
            for shortfall in one.shortfalls:
                line(console, shortfall)
            say("Plan", f"{one.store.location}/plan.json")
        say("Next", "gbcd run with the same study")
