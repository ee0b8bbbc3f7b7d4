"""What a researcher may write: a task, a wrong answer and a score, in a file that `--definitions` names."""

from __future__ import annotations

import dataclasses

import numpy as np

from gbcd.evaluation.baselines import baseline
from gbcd.tasks import Family, Filled, Slot, task
from gbcd.wrong_answers import wrong_answer
from gbcd.wrong_answers.losses import TowardsTokens


@dataclasses.dataclass
class Chosen:
    token: int = 0


@task("things", metric="logit_difference")
def things(vocabulary):
    """Who saw the table."""
    names = vocabulary.single(["Aaron", "Alan", "Albert", "Adam"], "names")

    def fill(words, rng):
        a, b = words["a"], words["b"]
        return Filled(f"{a} and {b} saw the", (" table",), (" door",), counterfactual=f"{b} and {a} saw the")

    yield Family("saw", [Slot("a b", names)], fill)


@wrong_answer("fixed")
def fixed(context):
    """Cross-entropy towards one token."""
    return TowardsTokens([(Chosen().token,)] * len(context.answers))


@baseline("earliness")
def earliness(asked):
    """Earlier is higher."""
    return np.array([-float(component.layer) for component in asked.components])
