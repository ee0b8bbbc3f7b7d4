"""A small study with an evaluation, whose prompts and templates try to be markup, for the tests of the report."""

from __future__ import annotations

import json
from pathlib import Path

from small_runs import finished
from tiny_models import saved_tiny_gpt2, small_tokenizer

from gbcd import tasks
from gbcd.evaluation.evaluate import evaluate
from gbcd.job.study import Compute, Study
from gbcd.report.page import write_report

HOSTILE = "</script><img src=x onerror=document.title='taken'><b>bold</b>"


def reported_study(folder: Path) -> Path:
    """Results with an evaluation and a report; one template has a hostile name."""
    prompts = tasks.draw("ioi", small_tokenizer(), 40, 0)
    lines = [
        {
            "prompt": prompt.text,
            "answer": list(prompt.answers),
            "wrong_answer": list(prompt.wrong_answers),
            "twin": prompt.twin,
            "counterfactual": prompt.counterfactual,
            "template": HOSTILE if index % 2 else "plain",
        }
        for index, prompt in enumerate(prompts)
    ]
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    study = Study(
        model=saved_tiny_gpt2(folder / "model"),
        prompts=str(file),
        wrong_answers=("logit_difference", "foil"),
        out=str(folder / "out"),
        compute=Compute(workers=0, device="cpu", shard_size=8, batch_size=4),
    )
    finished(study)
    evaluate(study.out, 6)
    write_report(study.out)
    return Path(study.out)
