"""Tasks by name: registering one, finding one, drawing prompts from one.

A task is a function from a model's vocabulary to families of prompts, registered by a decorator. The tasks of this
package are the modules beside this file; one from outside registers itself when its module is imported:

    @task("colours", metric="logit_difference")
    def colours(vocabulary):
        '''The sky is blue: the colour of a thing.'''
        def fill(words, rng):
            return Filled("The colour of the {thing} is".format(**words), (" blue",), (" green",),
                          counterfactual="The colour of the grass is")

        yield Family("is", [Slot("thing", vocabulary.single(["sky", "sea"], "things"))], fill)

Prompts are drawn from the families in turn, so that each template has its share whatever its size, and within a
family by index without repetition. A draw of n prompts is the beginning of any longer draw with the same seed.
"""

from __future__ import annotations

import importlib
import pkgutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Int64, UInt64
from transformers import PreTrainedTokenizerBase

from gbcd.errors import BadInput, own_code
from gbcd.names import register_name
from gbcd.prompting.datasets import PublishedCircuit, published_circuit
from gbcd.prompting.prompt import Prompt
from gbcd.prompting.vocabulary import Vocabulary
from gbcd.study import check_names
from gbcd.tasks._families import Family

Metric = Literal["logit_difference", "probability_difference", "negative_log_probability", "mean_squared_error"]
Families = Callable[[Vocabulary], Iterable[Family]]

_tasks: dict[str, Task] = {}


@dataclass(frozen=True, slots=True)
class Task:
    """A behaviour to study.

    Attributes:
        name: what a study calls it.
        metric: how well a model solves a prompt is measured by this.
        description: what the task is, in prose.
        circuit: the published circuit; None where there is none.
        families: the task's prompts for a vocabulary.
        model: the one model that the task is for; None where any language model will do.
        is_finite: True where the prompts are all inputs of the model, so that who asks for more gets all.
    """

    name: str
    metric: Metric
    description: str
    circuit: PublishedCircuit | None
    families: Families
    model: str | None = None
    is_finite: bool = False

    def capacity(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Number of distinct prompts that the task can give under `tokenizer`."""
        return sum(family.size for family in self.families(Vocabulary(tokenizer)))

    def choose(self, tokenizer: PreTrainedTokenizerBase, n: int, seed: int) -> Draw:
        """Choose `n` distinct prompts without writing any of them out.

        Raises:
            BadInput: `n` is below 1 or above the capacity, or the data have no words that fit the tokenizer.
        """
        if n < 1:
            raise BadInput(f"{n} prompts of task '{self.name}' were asked for; ask for at least 1.")
        with own_code(f"task '{self.name}'", self.families):
            families = list(self.families(Vocabulary(tokenizer)))
        sizes = [family.size for family in families]
        capacity = sum(sizes)
        if n > capacity:
            raise BadInput(
                f"{n} distinct prompts of task '{self.name}' were asked for, and its templates and words can give "
                f"{capacity} with this tokenizer. Ask for fewer, or give it more templates or words."
            )
        return Draw(self, families, *_choose(sizes, n, Random(f"{self.name}/{seed}")))


class Draw(NamedTuple):
    """Prompts of a task, chosen and not written out: a number of a family and an index within it for each.

    Attributes:
        task: whose prompts they are.
        families: of the task.
        turns: the family of each prompt.
        indices: of each within its family.
    """

    task: Task
    families: Sequence[Family]
    turns: array[int]
    indices: Sequence[int]

    def prompts(self, order: Iterable[int]) -> Iterator[Prompt]:
        """Write out the prompts with the numbers `order`.

        Raises:
            BadInput: two choices of words give one text; this is known at the end.
        """
        name, hashes, numbers = self.task.name, array("q"), array("Q")
        with own_code(f"task '{name}'", self.task.families):
            for number in order:
                family = self.families[self.turns[number]]
                filled = family.at(self.indices[number])
                hashes.append(hash(filled.text))
                numbers.append(number)
                yield Prompt(f"{name}/{number:06d}", name, family.template, *filled)
        self._refuse_repeated(np.frombuffer(hashes, np.int64), np.frombuffer(numbers, np.uint64))

    def _refuse_repeated(self, hashes: Int64[np.ndarray, " prompts"], numbers: UInt64[np.ndarray, " prompts"]) -> None:
        by_hash = np.argsort(hashes, kind="stable")
        alike = np.flatnonzero(hashes[by_hash[1:]] == hashes[by_hash[:-1]])
        for one, other in zip(numbers[by_hash[alike]].tolist(), numbers[by_hash[alike + 1]].tolist(), strict=True):
            families = [self.families[self.turns[number]] for number in (one, other)]
            texts = [
                family.at(self.indices[number]).text for family, number in zip(families, (one, other), strict=True)
            ]
            if texts[0] == texts[1]:
                raise BadInput(
                    f"templates {families[0].template!r} and {families[1].template!r} of task '{self.task.name}' give "
                    f"the same prompt, {texts[0]!r:.80}: each prompt may occur once. Let its slots tell them apart."
                )


def task(
    name: str, metric: Metric, circuit: str | None = None, *, model: str | None = None, is_finite: bool = False
) -> Callable[[Families], Task]:
    """Register a function from vocabulary to families as the task `name`; its docstring is the description.

    Args:
        name: new name.
        metric: how well a model solves a prompt.
        circuit: key of the published circuit in `circuits.json`.
        model: the one model that the task is for.
        is_finite: the prompts are all inputs of that model.

    Raises:
        BadInput: another task has this name, it has characters that file names cannot have, or there is no such metric.
    """

    def register(families: Families) -> Task:
        register_name("task", name)
        if name in _tasks:
            raise BadInput(f"There is a task '{name}' already. Choose another name.")
        refuse_unknown_metric(name, metric)
        circuit_of_task = published_circuit(circuit) if circuit else None
        description = (families.__doc__ or "").strip()
        _tasks[name] = Task(name, metric, description, circuit_of_task, families, model, is_finite)
        return _tasks[name]

    return register


def refuse_unknown_metric(name: str, metric: str) -> None:
    """Check that the task `name` can be measured by `metric`.

    Raises:
        BadInput: there is no such metric.
    """
    if metric not in get_args(Metric):
        raise BadInput(f"Task '{name}' is measured by '{metric}'; the metrics are {', '.join(get_args(Metric))}.")


def metric_of(task: str, has_wrong_answers: bool = True) -> Metric:
    """What prompts of `task` are measured by; prompts of no registered task by what their answers allow."""
    if task in names():
        return get(task).metric
    return "logit_difference" if has_wrong_answers else "negative_log_probability"


def names() -> list[str]:
    """The registered tasks, in alphabetical order."""
    _import_own_tasks()
    return sorted(_tasks)


def get(name: str) -> Task:
    """The task `name`.

    Raises:
        BadInput: there is none.
    """
    refuse_unknown((name,))
    return _tasks[name]


def refuse_unknown(asked: tuple[str, ...]) -> None:
    """Check that there are such tasks.

    Raises:
        BadInput: names those that there are not, with the nearest.
    """
    check_names("task", asked, names(), "`gbcd list tasks` describes them; --definitions FILE.py adds your own.")


def draw(name: str, tokenizer: PreTrainedTokenizerBase, n: int, seed: int) -> list[Prompt]:
    """Draw `n` distinct prompts of task `name`; the same arguments give the same prompts.

    Args:
        name: of the task.
        tokenizer: of the model that is to read them: words that it does not cut as the task needs are passed over.
        n: how many; fewer are the beginning of more.
        seed: fixes which.

    Raises:
        BadInput: there is no such task, `n` is below 1 or more than it can give, no words fit the tokenizer, or two
            choices of words give one text.
    """
    return list(get(name).choose(tokenizer, n, seed).prompts(range(n)))


@cache
def _import_own_tasks() -> None:
    package = importlib.import_module(__package__ or "gbcd.tasks")
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"{package.__name__}.{module.name}")


def _choose(sizes: Sequence[int], n: int, rng: Random) -> tuple[array[int], Sequence[int]]:
    """The family and the index in it of each of `n` prompts; `sizes` are those of the families."""
    used: list[set[int]] = [set() for _ in sizes]
    turns = array("L")
    indices: array[int] | list[int] = array("Q") if max(sizes) < 2**64 else []
    while len(turns) < n:
        turn = [number for number, size in enumerate(sizes) if len(used[number]) < size]
        rng.shuffle(turn)
        for number in turn[: n - len(turns)]:
            index = rng.randrange(sizes[number])
            while index in used[number]:
                index = rng.randrange(sizes[number])
            used[number].add(index)
            turns.append(number)
            indices.append(index)
    return turns, indices
