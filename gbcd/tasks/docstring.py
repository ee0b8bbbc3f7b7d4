"""The next parameter of a docstring (Heimersheim and Janiak 2023)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from random import Random

from gbcd.prompting import datasets
from gbcd.prompting.vocabulary import Vocabulary
from gbcd.tasks._families import Family, Filled, Slot, others
from gbcd.tasks._registry import task


@task("docstring", metric="logit_difference", circuit="docstring")
def docstring(vocabulary: Vocabulary) -> Iterator[Family]:
    """def load(self, size, file, key, end) with size and file documented, then :param -> key, not end.

    Answer: the parameter that follows the last one documented. Wrong answer: the other one that is not documented
    yet. Twin: these two trade places in the definition. Counterfactual: other parameters in the definition, and
    others again in the docstring, so that nothing says which one is next (the paper's random_random).
    """
    data = datasets.table("docstring")
    functions = vocabulary.single(data["functions"], "function names")
    parameters = vocabulary.single(data["parameters"], "parameter names", at_least=10)
    words = [word for word in datasets.words("words") if word not in parameters]
    filler = vocabulary.single(words, "words", at_least=8)
    for template, wording in data["templates"].items():
        places = " ".join(dict.fromkeys(re.findall(r"\{(w\d+)\}", wording)))
        slots = [Slot("a b c d", parameters), Slot("function", functions), Slot(places, filler)]
        yield Family(template, slots, partial(_fill, wording, parameters))


def _fill(wording: str, parameters: list[str], words: dict[str, str], rng: Random) -> Filled:
    definition, documentation = _halves(wording)
    swapped = words | {"c": words["d"], "d": words["c"]}
    new = others(parameters, [words[place] for place in "abcd"], 6, rng)
    elsewhere = words | dict(zip("abcd", new[:4], strict=True))
    undefined = words | dict(zip("ab", new[4:], strict=True))
    return Filled(
        text=wording.format(**words),
        answers=(f" {words['c']}",),
        wrong_answers=(f" {words['d']}",),
        twin=wording.format(**swapped),
        counterfactual=definition.format(**elsewhere) + documentation.format(**undefined),
    )


def _halves(wording: str) -> tuple[str, str]:
    definition, line, documentation = wording.partition("\n")
    return definition + line, documentation
