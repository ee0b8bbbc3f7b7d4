"""Indirect-object identification (Wang et al. 2022, arXiv 2211.00593), with templates of our own."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from random import Random

from gbcd.prompting import datasets
from gbcd.prompting.vocabulary import Vocabulary
from gbcd.tasks._families import Family, Filled, Slot, others
from gbcd.tasks._registry import task


@task("ioi", metric="logit_difference", circuit="ioi")
def ioi(vocabulary: Vocabulary) -> Iterator[Family]:
    """When Mary and John went to the store, John gave a drink to -> Mary, not John.

    Answer: the person named once (the indirect object). Wrong answer: the one named twice (the subject). Twin: the
    second mention of the subject becomes the indirect object, so that the two trade places. Counterfactual: it becomes
    a third person, so that the text no longer says which of the first two is meant (Wang et al.'s ABC).
    """
    names = vocabulary.single(datasets.words("names"), "first names", at_least=3)
    places = vocabulary.single(datasets.words("places"), "places")
    objects = vocabulary.single(datasets.words("objects"), "objects")
    for template, wording in datasets.table("ioi")["templates"].items():
        for order, subject in (("abba", "second"), ("baba", "first")):
            yield Family(
                template=f"{template}/{order}",
                slots=[Slot("first second", names), Slot("place", places), Slot("object", objects)],
                fill=partial(_fill, wording, subject, names),
            )


def _fill(wording: str, subject: str, names: list[str], words: dict[str, str], rng: Random) -> Filled:
    repeated = words[subject]
    indirect = words["first" if subject == "second" else "second"]
    [third] = others(names, [repeated, indirect], 1, rng)
    return Filled(
        text=wording.format(subject=repeated, **words),
        answers=(f" {indirect}",),
        wrong_answers=(f" {repeated}",),
        twin=wording.format(subject=indirect, **words),
        counterfactual=wording.format(subject=third, **words),
    )
