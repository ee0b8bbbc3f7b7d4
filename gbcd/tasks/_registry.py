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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Literal, get_args

from transformers import PreTrainedTokenizerBase

from gbcd.errors import BadInput, own_code
from gbcd.names import register_name
from gbcd.prompting.prompt import Prompt
from gbcd.prompting.vocabulary import Vocabulary
from gbcd.tasks._families import Family
from gbcd.tasks._published import PublishedCircuit, published_circuit

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

    def draw(self, tokenizer: PreTrainedTokenizerBase, n: int, seed: int) -> list[Prompt]:
        """Draw `n` distinct prompts; the same arguments give the same prompts.

        Raises:
            BadInput: `n` is below 1 or above the capacity, the data have no words that fit the tokenizer, or two
                choices of words give one text.
        """
        if n < 1:
            raise BadInput(f"{n} prompts of task '{self.name}' were asked for; ask for at least 1.")
        with own_code(f"task '{self.name}'", self.families):
            families = list(self.families(Vocabulary(tokenizer)))
        capacity = sum(family.size for family in families)
        if n > capacity:
            raise BadInput(
                f"{n} distinct prompts of task '{self.name}' were asked for, and its templates and words can give "
                f"{capacity} with this tokenizer. Ask for fewer, or give it more templates or words."
            )
        chosen = _choose(families, n, Random(f"{self.name}/{seed}"))
        with own_code(f"task '{self.name}'", self.families):
            prompts = [
                Prompt(f"{self.name}/{number:06d}", self.name, family.template, *family.at(index))
                for number, (family, index) in enumerate(chosen)
            ]
        _refuse_repeated(prompts)
        return prompts


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


def names() -> list[str]:
    """The registered tasks, in alphabetical order."""
    _import_own_tasks()
    return sorted(_tasks)


def get(name: str) -> Task:
    """The task `name`.

    Raises:
        BadInput: there is none; the message lists those that there are.
    """
    if name not in names():
        raise BadInput(f"There is no task '{name}'. Tasks: {', '.join(names())}; or --definitions FILE.py.")
    return _tasks[name]


def draw(name: str, tokenizer: PreTrainedTokenizerBase, n: int, seed: int) -> list[Prompt]:
    """Draw `n` distinct prompts of task `name`; the same arguments give the same prompts.

    Args:
        name: of the task.
        tokenizer: of the model that is to read them: words that it does not cut as the task needs are passed over.
        n: how many; fewer are the beginning of more.
        seed: fixes which.

    Raises:
        BadInput: there is no such task, `n` is below 1 or more than it can give, or no words fit the tokenizer.
    """
    return get(name).draw(tokenizer, n, seed)


@cache
def _import_own_tasks() -> None:
    package = importlib.import_module(__package__ or "gbcd.tasks")
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"{package.__name__}.{module.name}")


def _refuse_repeated(prompts: Sequence[Prompt]) -> None:
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        if (other := first.setdefault(prompt.text, prompt)) is not prompt:
            raise BadInput(
                f"templates {other.template!r} and {prompt.template!r} of task '{prompt.task}' give the same prompt, "
                f"{prompt.text!r:.80}: each prompt may occur once. Let its slots tell them apart."
            )


def _choose(families: Sequence[Family], n: int, rng: Random) -> list[tuple[Family, int]]:
    used: list[set[int]] = [set() for _ in families]
    chosen: list[tuple[Family, int]] = []
    while len(chosen) < n:
        turn = [number for number, family in enumerate(families) if len(used[number]) < family.size]
        rng.shuffle(turn)
        for number in turn[: n - len(chosen)]:
            index = rng.randrange(families[number].size)
            while index in used[number]:
                index = rng.randrange(families[number].size)
            used[number].add(index)
            chosen.append((families[number], index))
    return chosen
