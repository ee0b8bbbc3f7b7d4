"""A researcher's own prompts: a file checked as a whole before any work, then handed out in any order.

Every row is checked, and all problems are reported together. Good prompts go to a temporary file as they are read, with
the place where each begins, so that a study is shuffled without being held in memory: what stays is a number per prompt
and a hash per id.

An answer is the continuation exactly as the model would write it. One that is not a token as written, but is one with
a space in front, gets the space. One that is a token both ways is taken as written (" 15" goes on with "18", not
" 18"); `gbcd show --prompts FILE` shows which it was.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from functools import lru_cache
from itertools import islice
from typing import BinaryIO, cast

from transformers import PreTrainedTokenizerBase

from gbcd.errors import BadInput, listed
from gbcd.prompting.outputs import space_of
from gbcd.prompting.prompt import Prompt
from gbcd.prompting.prompt_rows import Row, opened, rows
from gbcd.prompting.prompt_shapes import TASK, Line, line_of, refuse_unknown
from gbcd.prompting.special_tokens import Bos
from gbcd.prompting.tokens import EncodedPrompt, Tokenised, single_token

#: Rows that are tokenised together.
CHUNK = 256


class PromptFile:
    """A file that was found good.

    Attributes:
        offsets: where each prompt begins in the temporary file, which goes with this object.
        answer_sets: distinct sets of right answers.
        all_answers: distinct answers and wrong answers.
    """

    def __init__(self) -> None:
        self.offsets: array[int] = array("q")
        self.answer_sets: set[tuple[str, ...]] = set()
        self.all_answers: set[str] = set()
        self._kept = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115
        weakref.finalize(self, _close, self._kept)

    def __len__(self) -> int:
        return len(self.offsets)

    def keep(self, prompt: Prompt) -> None:
        """Append a prompt."""
        self.offsets.append(self._kept.seek(0, 2))
        self._kept.write(json.dumps(asdict(prompt)).encode() + b"\n")
        self.answer_sets.add(prompt.answers)
        self.all_answers.update(prompt.answers, prompt.wrong_answers)

    def flush(self) -> None:
        """Write what is kept so far."""
        self._kept.flush()

    def read(self, order: Iterable[int]) -> Iterator[Prompt]:
        """The prompts at the places `order`, each from 0 to `len(self) - 1`."""
        for index in order:
            self._kept.seek(self.offsets[index])
            fields = json.loads(self._kept.readline())
            answers, wrong = tuple(fields.pop("answers")), tuple(fields.pop("wrong_answers"))
            yield Prompt(**fields, answers=answers, wrong_answers=wrong)


def _close(file: BinaryIO) -> None:
    with suppress(OSError):  # what could not be written is not missed
        file.close()


def sha256(path: str) -> str:
    """Hash of the file.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        with opened(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except BadInput as error:
        raise BadInput(f"prompt file {path!r}: {error}") from error


def check(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    context: int | None = None,
    needs_wrong_answer: Sequence[str] = (),
    n_rows: int | None = None,
    bos: Bos = "auto",
) -> PromptFile:
    """Read `path` and check every row.

    Args:
        path: the file.
        tokenizer: of the model that is to read the prompts.
        context: the longest prompt, in tokens, that the model takes.
        needs_wrong_answer: definitions of the wrong answer that read the prompts' own.
        n_rows: rows of the model's embedding.
        bos: whether a beginning of text precedes each prompt.

    Raises:
        BadInput: lists the problems of the file by line and field.
    """
    problems, seen = list[str](), dict[str, int]()
    lacking = f"it is missing, and {' and '.join(needs_wrong_answer)} cannot do without" if needs_wrong_answer else None
    try:
        good = PromptFile()
        with closing(rows(path)) as found:
            while chunk := list(islice(found, CHUNK)):
                if not seen and isinstance(chunk[0].value, dict):
                    refuse_unknown(chunk[0].value)
                results = [_prompt_or_problem(row, tokenizer, seen) for row in chunk]
                whole = [prompt for prompt in results if isinstance(prompt, Prompt)]
                encoded = iter(Tokenised(whole, tokenizer, context, n_rows, bos).encoded_or_problem())
                for row, prompt in zip(chunk, results, strict=True):
                    faults = _faults(prompt, next(encoded), lacking) if isinstance(prompt, Prompt) else [prompt]
                    problems += [_placed(row.number, line) for fault in faults for line in str(fault).splitlines()]
                    if isinstance(prompt, Prompt) and not problems:
                        good.keep(prompt)
        good.flush()
    except BadInput as error:
        raise BadInput(f"prompt file {path!r}: {error}") from error
    except OSError as error:
        raise BadInput(f"prompts cannot be kept in {tempfile.gettempdir()} (TMPDIR): {error.strerror}") from error
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems):,} problems"
        raise BadInput(f"prompt file {path!r} has {count}:\n{listed(problems)}")
    if not good:
        raise BadInput(f"prompt file {path!r} holds no prompts")
    return good


def _faults(prompt: Prompt, encoded: EncodedPrompt | BadInput, lacking: str | None) -> list[BadInput]:
    found = [encoded] if isinstance(encoded, BadInput) else []
    return found if prompt.wrong_answers or lacking is None else [*found, BadInput(f"wrong_answer: {lacking}")]


def _placed(number: int, fault: str) -> str:
    """`line 3, answer: it is missing`, `line 3, column 9: Invalid JSON`, or `line 3: ...` where no place is named."""
    place = fault.partition(":")[0].removeprefix("column ")
    return f"line {number}{', ' if place.isidentifier() or place.isdecimal() else ': '}{fault}"


def _prompt_or_problem(row: Row, tokenizer: PreTrainedTokenizerBase, seen: dict[str, int]) -> Prompt | BadInput:
    if isinstance(row.value, BadInput):
        return row.value
    try:
        line = line_of(row.value, lambda token: _token_text(token, tokenizer))
        name = line.id or f"{TASK}/{row.number:06d}"
        if (first := seen.setdefault(name, row.number)) != row.number:
            return BadInput(f"id: {name!r:.60} is that of line {first} too")
        return _prompt(line, name, tokenizer)
    except BadInput as error:
        return error


@lru_cache(maxsize=2**16)
def continuation(answer: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """`answer` as the model would write it: with a space in front where it is a token only so.

    For a model that answers at every position an answer is a whole sequence, and stays as it is.
    """
    if space_of(tokenizer) is None:
        for text in (answer, f" {answer}"):
            with suppress(BadInput):
                single_token(text, tokenizer)
                return text
    return answer


@lru_cache(maxsize=2**16)
def _token_text(token: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of a token that a file names by its id.

    Raises:
        BadInput: the tokenizer has no such token, or would not write its text with it.
    """
    text = str(tokenizer.decode([token])) if 0 <= token < len(tokenizer) else ""
    for written in (text, f" {text}"):  # some decoders take the space off
        with suppress(BadInput):
            if text and single_token(written, tokenizer) == token:
                return written
    raise BadInput(f"token id {token} is no word of this model's tokenizer: the file was made for another one")


def _prompt(line: Line, name: str, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    return Prompt(
        id=name,
        task=TASK,
        template=line.template,
        text=line.prompt,
        answers=tuple(continuation(answer, tokenizer) for answer in line.answer),
        wrong_answers=tuple(continuation(answer, tokenizer) for answer in line.wrong_answer or ()),
        twin=line.twin,
        counterfactual=line.counterfactual,
    )
