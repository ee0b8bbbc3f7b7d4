"""A researcher's own prompts: a file checked as a whole before any work, then read as a stream.

The file is read twice. The first pass checks every line, reports all problems together, and remembers where each good
line begins; the second hands out prompts in any order of these places, so that a study is shuffled without being held
in memory. What stays is a number per line and a hash per prompt and id, which find duplicates.

An answer is the continuation exactly as the model would write it. One that is not a token as written, but is one with
a space in front, gets the space. One that is a token both ways is taken as written (" 15" goes on with "18", not
" 18"); `gbcd show --prompts FILE` shows which it was.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from io import BufferedReader
from itertools import islice
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from gbcd.errors import BadInput, listed
from gbcd.prompting.outputs import space_of
from gbcd.prompting.prompt import Prompt
from gbcd.prompting.prompt_lines import MAX_LINE, TASK, Line, Place, content, parsed_lines
from gbcd.prompting.tokens import encode, single_token

#: Lines that are tokenised together.
CHUNK = 256


@dataclass(frozen=True)
class PromptFile:
    """A file that was found good.

    Attributes:
        path: as it was given.
        tokenizer: that it was checked with.
        numbers: line of each prompt, counted from 1.
        offsets: byte at which that line begins.
        answer_sets: distinct sets of right answers.
        all_answers: distinct answers and wrong answers.
    """

    path: str
    tokenizer: PreTrainedTokenizerBase
    numbers: array[int] = field(default_factory=lambda: array("q"))
    offsets: array[int] = field(default_factory=lambda: array("q"))
    answer_sets: set[tuple[str, ...]] = field(default_factory=set)
    all_answers: set[str] = field(default_factory=set)

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.offsets)

    def read(self, order: Iterable[int]) -> Iterator[Prompt]:
        """The prompts at the places `order`, each from 0 to `len(self) - 1`."""
        with _opened(self.path) as file:
            for index in order:
                file.seek(self.offsets[index])
                line = Line.model_validate_json(content(file.readline(MAX_LINE)))
                yield _prompt(line, self.numbers[index], self.tokenizer)


def sha256(path: str) -> str:
    """Hash of the file.

    Raises:
        BadInput: it cannot be read.
    """
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(
    path: str, tokenizer: PreTrainedTokenizerBase, context: int | None = None, needs_wrong_answer: Sequence[str] = ()
) -> PromptFile:
    """Read `path` once and check every line.

    Args:
        path: the file.
        tokenizer: of the model that is to read the prompts.
        context: the longest prompt, in tokens, that the model takes.
        needs_wrong_answer: definitions of the wrong answer that read the prompts' own.

    Raises:
        BadInput: lists the problems of the file by line and field.
    """
    checks = _Checks(PromptFile(path, tokenizer), context, needs_wrong_answer)
    with _opened(path) as file:
        lines = parsed_lines(file, checks.problems)
        while chunk := list(islice(lines, CHUNK)):
            checks.take(chunk)
    if checks.problems:
        count = "1 problem" if len(checks.problems) == 1 else f"{len(checks.problems):,} problems"
        raise BadInput(f"prompt file {path!r} has {count}:\n{listed(checks.problems)}")
    if not checks.good:
        raise BadInput(f"prompt file {path!r} holds no prompts")
    return checks.good


class _Checks:
    """Takes lines in order; the problems that only the tokenizer or other lines show."""

    def __init__(self, good: PromptFile, context: int | None, needs_wrong_answer: Sequence[str]) -> None:
        self.good, self.problems = good, list[str]()
        self._context, self._needs_wrong_answer = context, needs_wrong_answer
        self._seen: dict[bytes, int] = {}

    def take(self, chunk: Sequence[Place]) -> None:
        """Check some lines."""
        texts = [text for place in chunk for text in _texts(place.line).values()]
        ids = dict(zip(texts, self.good.tokenizer(texts)["input_ids"], strict=True))
        for place in chunk:
            found = [*self._repeated(place), *self._answers(place.line), *self._lengths(place.line, ids)]
            self.problems += [f"line {place.number}, {problem}" for problem in found]
            if not self.problems:
                self._keep(place)

    def _keep(self, place: Place) -> None:
        prompt = _prompt(place.line, place.number, self.good.tokenizer)
        self.good.numbers.append(place.number)
        self.good.offsets.append(place.offset)
        self.good.answer_sets.add(prompt.answers)
        self.good.all_answers.update(prompt.answers, prompt.wrong_answers)

    def _repeated(self, place: Place) -> Iterator[str]:
        names = {"prompt": place.line.prompt, "id": place.line.id or default_id(place.number)}
        for name, value in names.items():
            key = hashlib.blake2b(f"{name} {value}".encode(), digest_size=16).digest()
            if (first := self._seen.setdefault(key, place.number)) != place.number:
                yield f"{name}: {value!r:.60} is that of line {first} too"

    def _answers(self, line: Line) -> Iterator[str]:
        if space_of(self.good.tokenizer) is not None:
            yield from self._outputs(line)
            return
        tokens: dict[str, list[int]] = {}
        for name, answers in {"answer": line.answer, "wrong_answer": line.wrong_answer or []}.items():
            tokens[name] = []
            for answer in answers:
                try:
                    tokens[name].append(single_token(continuation(answer, self.good.tokenizer), self.good.tokenizer))
                except BadInput as error:
                    yield f"{name}: {error}"
            if len(set(tokens[name])) < len(tokens[name]):
                yield f"{name}: a token is named twice in {answers}"
        if shared := set(tokens["answer"]) & set(tokens["wrong_answer"]):
            names = ", ".join(repr(self.good.tokenizer.decode([token])) for token in sorted(shared))
            yield f"wrong_answer: it is the answer: {names}"
        if self._needs_wrong_answer and line.wrong_answer is None:
            yield f"wrong_answer: it is missing, and {' and '.join(self._needs_wrong_answer)} cannot do without"

    def _outputs(self, line: Line) -> Iterator[str]:
        prompt = _prompt(line, 0, self.good.tokenizer)
        try:
            encode([prompt], self.good.tokenizer)
        except BadInput as error:
            yield f"answer: {str(error).splitlines()[-1].strip().removeprefix(f'{prompt.id}: ')}"

    def _lengths(self, line: Line, ids: dict[str, list[int]]) -> Iterator[str]:
        for name, text in _texts(line).items():
            if not text.strip():
                yield f"{name}: it is empty"
            elif self._context is not None and len(ids[text]) > self._context:
                yield f"{name}: it has {len(ids[text])} tokens, more than the model's context of {self._context}"
        if line.counterfactual is not None and len(ids[line.counterfactual]) != len(ids[line.prompt]):
            yield (
                f"counterfactual: it has {len(ids[line.counterfactual])} tokens and its prompt "
                f"{len(ids[line.prompt])}; patching needs equal lengths"
            )


@lru_cache(maxsize=2**16)
def continuation(answer: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """`answer` as the model would write it: with a space in front where it is a token only so.

    For a model that answers at every position an answer is a whole sequence, and stays as it is.

    Raises:
        BadInput: it is one token neither way.
    """
    if space_of(tokenizer) is not None:
        return answer
    try:
        single_token(answer, tokenizer)
    except BadInput:
        with suppress(BadInput):
            single_token(f" {answer}", tokenizer)
            return f" {answer}"
        raise
    return answer


def default_id(number: int) -> str:
    """What a prompt is called that names no id."""
    return f"{TASK}/{number:06d}"


def _texts(line: Line) -> dict[str, str]:
    texts = {"prompt": line.prompt, "twin": line.twin, "counterfactual": line.counterfactual}
    return {name: text for name, text in texts.items() if text is not None}


def _prompt(line: Line, number: int, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    return Prompt(
        id=line.id or default_id(number),
        task=TASK,
        template=line.template,
        text=line.prompt,
        answers=tuple(continuation(answer, tokenizer) for answer in line.answer),
        wrong_answers=tuple(continuation(answer, tokenizer) for answer in line.wrong_answer or ()),
        twin=line.twin,
        counterfactual=line.counterfactual,
    )


def _opened(path: str) -> BufferedReader:
    if not Path(path).is_file():  # a pipe cannot be read twice
        raise BadInput(f"prompt file {path!r} does not exist, or is no regular file")
    try:
        return open(path, "rb")
    except OSError as error:
        raise BadInput(f"prompt file {path!r} cannot be read: {error.strerror}") from error
