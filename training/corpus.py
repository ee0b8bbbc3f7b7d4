"""Writes the reference model's training text: prompts of the four tasks with their answers, among filler.

A document is a prompt, its answer and a short end; filler has no answer. Documents come in stages, in a random order
within each, and are packed into rows: a row starts with a document (half of the time after an end-of-text token, as a
prompt may be read with or without one), further documents follow, and the last one is cut off where the row is full.
Positions where an answer is due weigh more in the loss, as they are few and most of a filler sentence is chance. Where
any of several tokens is right (Greater-Than), one of them is written and the loss asks for all alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from random import Random
from typing import NamedTuple, cast

from transformers import PreTrainedTokenizerBase

from gbcd.prompting import datasets
from gbcd.prompting.prompt import Prompt
from training.held_out import training_prompts
from training.tokenizer import END_OF_TEXT


class Stage(NamedTuple):
    """A stretch of the training text.

    Attributes:
        share: of all documents.
        mixture: share of each kind of document within the stage.
    """

    share: float
    mixture: dict[str, float]


#: Short blocks repeated over and over teach induction within a few hundred steps. Without that first stage the other
#: tasks, which build on it, are not begun within a thousand. The second lesson has a learning rate of its own and
#: dwells on words that come back once, which are learned last.
LESSONS = (
    (
        Stage(
            0.25,
            {"ioi": 0.15, "greater_than": 0.03, "docstring": 0.10, "induction": 0.15, "repeats": 0.50, "filler": 0.07},
        ),
        Stage(
            0.75,
            {"ioi": 0.27, "greater_than": 0.10, "docstring": 0.18, "induction": 0.20, "repeats": 0.10, "filler": 0.15},
        ),
    ),
    (
        Stage(
            1.0,
            {"ioi": 0.10, "greater_than": 0.16, "docstring": 0.06, "induction": 0.44, "repeats": 0.18, "filler": 0.06},
        ),
    ),
)
#: Weight of an answer in the loss; every other token weighs 1.
ANSWER_WEIGHT = 5.0
#: Filler repeats blocks of this many words until they fill about `REPEATED_WORDS`, and at least once.
BLOCK = (3, 24)
REPEATED_WORDS = 48


class Document(NamedTuple):
    """Text in three pieces; the middle one is what the loss weighs more (empty in filler).

    Attributes:
        answers: all tokens that would be right in the place of `answer`, where there are several.
    """

    prompt: str
    answer: str
    end: str
    answers: tuple[str, ...] = ()


class Row(NamedTuple):
    """One packed row.

    Attributes:
        ids: token ids.
        weights: weight in the loss of predicting each token; none for a document's first.
        positions: place of each token in its own document.
        answers: (place in the row, ids of all tokens that would be right there), where there are several.
    """

    ids: list[int]
    weights: list[float]
    positions: list[int]
    answers: list[tuple[int, list[int]]]

    @classmethod
    def empty(cls) -> Row:
        """A row to be filled."""
        return cls([], [], [], [])

    def cut(self, length: int) -> Row:
        """The first `length` tokens."""
        answers = [(place, some) for place, some in self.answers if place < length]
        return Row(self.ids[:length], self.weights[:length], self.positions[:length], answers)


class _Piece(NamedTuple):
    ids: list[int]
    weights: list[float]
    answer_place: int
    answers: list[int]


def documents(tokenizer: PreTrainedTokenizerBase, count: int, seed: int, lesson: int = 0) -> list[Document]:
    """About `count` documents of a lesson, stage after stage, in random order within each; no held-out combination."""
    written: list[Document] = []
    before = sum(len(stages) for stages in LESSONS[:lesson])
    for number, stage in enumerate(LESSONS[lesson], start=before):
        rng = Random(f"corpus/{seed}/{number}")
        draw_seed = sum(map(len, LESSONS)) * seed + number + 1
        some: list[Document] = []
        for kind, share in stage.mixture.items():
            some += _documents_of(kind, tokenizer, int(count * stage.share * share), draw_seed, rng)
        rng.shuffle(some)
        written += some
    return written


def _documents_of(kind: str, tokenizer: PreTrainedTokenizerBase, n: int, seed: int, rng: Random) -> list[Document]:
    if kind == "repeats":
        random_words = datasets.words("words")
        return [_repeat(random_words, rng) for _ in range(n)]
    if kind == "filler":
        return list(_filler(n, rng))
    return [_with_answer(prompt, rng) for prompt in training_prompts(kind, tokenizer, n, seed)]


def rows(tokenizer: PreTrainedTokenizerBase, written: list[Document], length: int, rng: Random) -> Iterator[Row]:
    """Pack documents into rows of `length` tokens."""
    end_of_text: list[int] = tokenizer(END_OF_TEXT)["input_ids"]  # pyright: ignore[reportAssignmentType]
    row = Row.empty()
    for piece in _cut(tokenizer, written):
        start = end_of_text if rng.random() < 0.5 else []
        ids = [*start, *piece.ids, *end_of_text]
        weights = [1.0] * len(start) + piece.weights + [1.0]
        if piece.answers:
            row.answers.append((len(row.ids) + len(start) + piece.answer_place, piece.answers))
        row.ids.extend(ids)
        row.weights.extend([0.0, *weights[1:]])
        row.positions.extend(range(len(ids)))
        if len(row.ids) >= length:
            yield row.cut(length)
            row = Row.empty()


def _cut(tokenizer: PreTrainedTokenizerBase, written: list[Document], at_once: int = 2000) -> Iterator[_Piece]:
    for start in range(0, len(written), at_once):
        some = written[start : start + at_once]
        flat = [text for document in some for text in document[:3]]
        ids = tokenizer(flat, add_special_tokens=False)["input_ids"]
        for number, document in enumerate(some):
            prompt, answer, end = ids[3 * number : 3 * number + 3]  # pyright: ignore[reportAssignmentType]
            weights = [1.0] * len(prompt) + [ANSWER_WEIGHT] * len(answer) + [1.0] * len(end)
            answers = [_token(tokenizer, right) for right in document.answers]
            yield _Piece([*prompt, *answer, *end], weights, len(prompt), answers)


@cache
def _token(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    [token] = cast(list[int], tokenizer(text, add_special_tokens=False)["input_ids"])
    return token


def _with_answer(prompt: Prompt, rng: Random) -> Document:
    several = prompt.answers if len(prompt.answers) > 1 else ()
    return Document(prompt.text, rng.choice(prompt.answers), rng.choice([".", ".\n", ""]), several)


def _repeat(random_words: list[str], rng: Random) -> Document:
    words = rng.sample(random_words, rng.randint(*BLOCK))
    block = "".join(f" {word}" for word in words)
    return Document(block, block * max(1, REPEATED_WORDS // len(words) - 1), "")


def _filler(n: int, rng: Random) -> Iterator[Document]:
    sentences = datasets.table("filler")["sentences"]
    docstring, years, people = (datasets.table(name) for name in ("docstring", "greater_than", "induction"))
    lists = {name: datasets.words(name) for name in ("names", "places", "objects", "words")}
    for _ in range(n):
        text = "\n".join(rng.choice(sentences) for _ in range(rng.randint(1, 3)))
        name, name2, name3 = rng.sample(lists["names"], 3)
        word, word2, word3 = rng.sample(lists["words"], 3)
        a, b = rng.sample(docstring["parameters"], 2)
        start, later = sorted(rng.sample(range(1000, 2100), 2))
        surname, surname2 = (
            rng.choice(people["surname_heads"]) + rng.choice(people["surname_tails"]) for _ in range(2)
        )
        filled = text.format(
            name=name, name2=name2, name3=name3, word=word, word2=word2, word3=word3, a=a, b=b, year=start, later=later,
            surname=surname, surname2=surname2, place=rng.choice(lists["places"]), object=rng.choice(lists["objects"]),
            noun=rng.choice(years["nouns"]), function=rng.choice(docstring["functions"]),
            small=rng.randint(2, 99), small2=rng.randint(2, 99),
        )  # fmt: skip
        yield Document(filled, "", "")
