"""The record that everything starts from: one prompt with its answers.

A prompt is text, exactly as it goes to the tokenizer; an answer is the continuation exactly as the model would write
it, leading space included. An answer may be a set of continuations (Greater-Than: every later year): the
metric then speaks of their total probability.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a task.

    Attributes:
        id: unique within a study and the same in every run of it, for example `ioi/000123`.
        task: name of the task, or `prompts` for a prompt file.
        template: name of the wording that the prompt was built from; statistics are clustered by it.
        text: what the model reads. The answer is what comes next.
        answers: right continuations, as text; each is one token of the model's tokenizer.
        wrong_answers: the task's own wrong continuations (the foil), as text; may be empty.
        twin: the same prompt with the subjects swapped, so that answer and wrong answer trade places; its gradient is
            added to the prompt's own under the `logit_difference` loss, the original proposal's. None where the
            task has none.
        counterfactual: a prompt of the same length that calls for another answer; patching takes activations from it.
        farthest: of all answers in the study's prompts of this task, the one farthest in meaning from the right ones;
            set by `gbcd.wrong_answers.meaning` where a study asks for it.
    """

    id: str
    task: str
    template: str
    text: str
    answers: tuple[str, ...]
    wrong_answers: tuple[str, ...] = ()
    twin: str | None = None
    counterfactual: str | None = None
    farthest: str | None = None
