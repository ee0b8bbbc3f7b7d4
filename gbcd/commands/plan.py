"""`gbcd plan`: all that a run does before it computes."""

from __future__ import annotations

from gbcd.commands import options
from gbcd.commands.terminal import console, exit_status, hush_libraries, say
from gbcd.printing import counted, line


def plan(
    study: options.StudyFiles = None,
    task: options.Tasks = None,
    model: options.Model = None,
    prompts: options.Prompts = None,
    wrong_answer: options.WrongAnswers = None,
    definitions: options.Definitions = None,
    embedding_model: options.EmbeddingModel = None,
    seed: options.Seed = None,
    edges: options.Edges = None,
    neurons: options.Neurons = None,
    ig_steps: options.IgSteps = None,
    out: options.Out = None,
    device: options.Device = None,
    dtype: options.DType = None,
    shard_size: options.ShardSize = None,
    batch_size: options.BatchSize = None,
) -> None:
    """Draw and check the prompts of studies and store their plans, without computing."""
    flags = locals()
    with exit_status(resumes=True):
        asked = options.asked_studies(flags)
        hush_libraries()
        from gbcd.run.planning import open_plan
        from gbcd.run.progress import ProgressDisplay

        for one in asked:
            with ProgressDisplay(console) as display:
                planned = open_plan(one, display.planning)
            settled, compute = planned.plan.study, planned.plan.study.compute
            say("Prompts", f"{planned.plan.n_prompts:,} for {settled.model}, centred by {settled.centering}")
            say("Wrong answer", ", ".join(settled.wrong_answers))
            say(
                "Shards", f"{len(planned.plan.shards):,} of up to {counted(planned.plan.shards[0].n_prompts, 'prompt')}"
            )
            say("Compute", f"on {compute.device}, in batches of {compute.batch_size:,}")
            for note in planned.notes:
                line(console, note)
            say("Plan", f"{planned.store.location}/plan.json")
        say("Next", "gbcd run with the same study")
