"""From a study to its parts: one for each model that its tasks run on.

A task of a compiled program brings its model; all others run on the study's. A definition of the wrong answer that
means nothing for the answers of one model is left out there, with the reason, as long as it means something for another
model of the study and leaves that one something to do.
"""

from __future__ import annotations

import re
from pathlib import Path

from gbcd import tasks, wrong_answers
from gbcd.errors import BadInput
from gbcd.models import load as models
from gbcd.prompting.outputs import space_of
from gbcd.run.parts import Part
from gbcd.study import Study


def split(study: Study) -> tuple[Part, ...]:
    """The parts of `study`, in the order in which its tasks name their models; one part where there is one model.

    Raises:
        BadInput: `model` was given and no task uses it, a tokenizer cannot be had, a definition means nothing for any
            model, or no definition means anything for one of them.
    """
    if study.prompts is not None:
        return (_whole(study, study.model),)
    tasks_of: dict[str, list[str]] = {}
    for task in study.tasks:
        tasks_of.setdefault(tasks.get(task).model or study.model, []).append(task)
    if "model" in study.model_fields_set and study.model not in tasks_of:
        brought = ", ".join(f"{task} on {model}" for model, names in tasks_of.items() for task in names)
        raise BadInput(f"model {study.model!r} is used by no task, since they bring their own: {brought}")
    if len(tasks_of) == 1:
        return (_whole(study, next(iter(tasks_of))),)
    parts: list[Part] = []
    for model, names in tasks_of.items():
        parts.append(_part(study, model, tuple(names), {part.folder for part in parts}))
    _refuse_idle(study, parts)
    return tuple(parts)


def _whole(study: Study, model: str) -> Part:
    return Part(folder="", model=model, tasks=study.tasks, wrong_answers=study.wrong_answers)


def _part(study: Study, model: str, names: tuple[str, ...], taken: set[str]) -> Part:
    space = space_of(models.load_tokenizer(model))
    undefined = {
        name: reason
        for name in study.wrong_answers
        if (reason := wrong_answers.why_undefined(wrong_answers.get(name), space)) is not None
    }
    defined = tuple(name for name in study.wrong_answers if name not in undefined)
    return Part(folder=_folder(model, taken), model=model, tasks=names, wrong_answers=defined, undefined=undefined)


def _folder(model: str, taken: set[str]) -> str:
    name = re.sub(r"\W+", "_", Path(model).name).strip("_") or "model"
    candidates = (name, *(f"{name}_{number}" for number in range(2, len(taken) + 2)))
    return next(candidate for candidate in candidates if candidate not in taken)


def _refuse_idle(study: Study, parts: list[Part]) -> None:
    for part in parts:
        if not part.wrong_answers:
            reasons = "; ".join(part.undefined.values())
            raise BadInput(f"none of the wrong answers is defined for {', '.join(part.tasks)}: {reasons}")
    for name in study.wrong_answers:
        if all(name in part.undefined for part in parts):
            raise BadInput(f"{name} is defined for no task of this study: {parts[0].undefined[name]}")
