"""Small studies with an evaluation and a report, for the tests of the report."""

from __future__ import annotations

import json
from pathlib import Path

from small_runs import finished, quietly, small_study
from tiny_models import saved_tiny_gpt2, small_tokenizer

from gbcd import tasks
from gbcd.evaluation.evaluate import evaluate
from gbcd.report.page import write_report
from gbcd.run.parts import folders
from gbcd.study import Compute, Study

HOSTILE = "</script><img src=x onerror=document.title='taken'><b>bold</b>"


def reported_study(folder: Path) -> Path:
    """Results of a prompt file, one of whose templates has a name that tries to be markup."""
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


def reported_studies(folder: Path) -> Path:
    """Results of two models: two tasks and two wrong answers with a tiny GPT-2, and a compiled program."""
    study = small_study(
        folder,
        tasks=("ioi", "induction", "tracr_reverse"),
        prompts_per_task=24,
        wrong_answers=("foil", "inverse_logits"),
    )
    quietly(study)
    for part in folders(study.out):
        evaluate(part, 4)
        write_report(part)
    return Path(study.out)
