"""Where a study's prompts come from: drawn from tasks, or read from a researcher's own file.

Either way they come shuffled, so that every shard and every batch is a random draw, and with the answer farthest in
meaning where a definition of the wrong answer asks for it.
"""

from __future__ import annotations

import hashlib
import json
import random
from array import array
from collections.abc import Iterator
from dataclasses import astuple, replace
from typing import NamedTuple, cast

from transformers import PreTrainedTokenizerBase

from gbcd import tasks, wrong_answers
from gbcd.engine.tables import STATISTICS
from gbcd.errors import BadInput
from gbcd.models.load import LoadedModel
from gbcd.prompting import prompt_files
from gbcd.prompting.prompt import Prompt
from gbcd.prompting.prompt_shapes import TASK
from gbcd.study import Study, check_names
from gbcd.tasks import Draw
from gbcd.wrong_answers import meaning
from gbcd.wrong_answers.meaning import Embed

#: Prompts of a task whose hash stands for its templates and fillers when a study is resumed.
FINGERPRINT_PROMPTS = 200


class Source(NamedTuple):
    """Prompts of one task: how many, and the prompts themselves, shuffled."""

    task: str
    n_prompts: int
    prompts: Iterator[Prompt]


def refuse_unknown(study: Study) -> None:
    """Check what can be checked without the model.

    Raises:
        BadInput: unknown tasks, wrong answers or statistics, no prompt file, no library for sentence embeddings.
    """
    tasks.refuse_unknown(study.tasks)
    wrong_answers.refuse_unknown(study.wrong_answers)
    check_names("statistic", study.statistics, [*STATISTICS], "A study that names none has them all")
    if study.ig_steps > 1 and study.statistics and "attribution" not in study.statistics:
        raise BadInput("ig_steps is of the statistic attribution, which the study leaves out")
    if study.prompts is not None:
        prompt_files.sha256(study.prompts)
    if needs_meaning(study.wrong_answers):
        meaning.require_library()


def fingerprints(study: Study, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """SHA-256 of what the prompts are made from: the prompt file, or the first prompts that each task draws.

    Raises:
        BadInput: a task cannot give as many prompts.
    """
    if study.prompts is not None:
        return {f"prompts:{TASK}": prompt_files.sha256(study.prompts)}
    sample = min(cast(int, study.prompts_per_task), FINGERPRINT_PROMPTS)
    return {f"prompts:{task}": _fingerprint(task, tokenizer, sample, study.seed) for task in study.tasks}


def needs_meaning(definitions: tuple[str, ...]) -> bool:
    """True if one of the wrong answers is chosen by a sentence-embedding model."""
    return any(wrong_answers.get(name).needs_meaning for name in definitions)


def drawn(study: Study, loaded: LoadedModel) -> Iterator[Source]:
    """The prompts of a study, task by task.

    Raises:
        BadInput: a task cannot give as many prompts, the prompt file has faults, or the embedding model is not to be
            had.
    """
    embed = meaning.load_embedder(study.embedding_model) if needs_meaning(study.wrong_answers) else None
    if study.prompts is not None:
        yield _from_file(study, study.prompts, loaded, embed)
        return
    for task in study.tasks:
        draw = _draw(task, loaded.tokenizer, cast(int, study.prompts_per_task), study.seed)
        prompts = draw.prompts(_shuffled(len(draw.turns), study, task))
        if embed is not None:
            prompts = iter(meaning.with_farthest(list(prompts), embed))
        yield Source(task, len(draw.turns), prompts)


def _draw(task: str, tokenizer: PreTrainedTokenizerBase, n: int, seed: int) -> Draw:
    """`n` prompts of a task, or all that there are where these are all inputs of its model."""
    chosen = tasks.get(task)
    return chosen.choose(tokenizer, min(n, chosen.capacity(tokenizer)) if chosen.is_finite else n, seed)


def _fingerprint(task: str, tokenizer: PreTrainedTokenizerBase, n: int, seed: int) -> str:
    digest, draw = hashlib.sha256(), _draw(task, tokenizer, n, seed)
    for prompt in draw.prompts(range(len(draw.turns))):
        digest.update(json.dumps(astuple(prompt)).encode() + b"\n")
    return digest.hexdigest()


def _shuffled(n: int, study: Study, task: str) -> array[int]:
    order = array("Q", range(n))
    random.Random(f"{study.seed}/{task}").shuffle(order)
    return order


def _from_file(study: Study, path: str, loaded: LoadedModel, embed: Embed | None) -> Source:
    needs_foil = [name for name in study.wrong_answers if wrong_answers.get(name).needs_foil]
    file = loaded.check(path, needs_foil, study.bos)
    prompts = file.read(_shuffled(len(file), study, TASK))
    if embed is not None:
        chosen = meaning.farthest(file.answer_sets, file.all_answers, embed)
        prompts = (replace(prompt, farthest=chosen[prompt.answers]) for prompt in prompts)
    return Source(TASK, len(file), prompts)
