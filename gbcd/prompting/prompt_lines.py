"""The format of a prompt file: JSON lines, parsed one by one, with every fault named by line and field.

    {"prompt": "When Mary and John went to the store, John gave a drink to", "answer": "Mary", "wrong_answer": "John"}

`prompt` and `answer` are needed; `wrong_answer`, `counterfactual`, `twin`, `template` and `id` may be left out, and an
answer may be a list. Blank lines are passed over.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import Annotated, Any, BinaryIO, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

#: The task that prompts of a file belong to, and the template of those that name none.
TASK = "prompts"

#: Longest line, in bytes; a model's context is a small part of it.
MAX_LINE = 2**20


def _several(answer: Any) -> Any:
    return [answer] if isinstance(answer, str) else answer


Text = Annotated[str, Field(min_length=1)]
Answers = Annotated[list[Text], Field(min_length=1), BeforeValidator(_several)]


class Line(BaseModel):
    """One line of a prompt file: the fields of `gbcd.prompting.prompt.Prompt`, answers as the researcher wrote them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    prompt: Text
    answer: Answers
    wrong_answer: Answers | None = None
    counterfactual: Text | None = None
    twin: Text | None = None
    template: Text = TASK
    id: Text | None = None


class Place(NamedTuple):
    """A line and where it is: its number, counted from 1, and the byte that it begins with."""

    number: int
    offset: int
    line: Line


def parsed_lines(file: BinaryIO, problems: list[str]) -> Iterator[Place]:
    """Parse line after line; those that cannot be parsed are added to `problems`."""
    number = offset = 0
    while raw := file.readline(MAX_LINE + 1):
        number, start, length = number + 1, offset, len(raw)
        end = raw
        while not end.endswith(b"\n") and (end := file.readline(MAX_LINE)):
            length += len(end)
        offset += length
        if length > MAX_LINE:
            problems.append(f"line {number}: it has {length:,} bytes, more than {MAX_LINE:,}")
        elif number == 1 and raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            problems.append("line 1: the file is UTF-16; save it as UTF-8")
            return
        elif content(raw) and (line := _parsed(content(raw), number, problems)) is not None:
            yield Place(number, start, line)


def content(raw: bytes) -> bytes:
    """A line without its end, and without the mark that some editors put in front of UTF-8."""
    return raw.removeprefix(codecs.BOM_UTF8).strip()


def _parsed(raw: bytes, number: int, problems: list[str]) -> Line | None:
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        problems.append(f"line {number}: byte {error.start + 1} is not UTF-8; save the file as UTF-8")
        return None
    try:
        return Line.model_validate_json(raw)
    except ValidationError as invalid:
        problems.extend(f"line {number}{_explained(dict(problem))}" for problem in invalid.errors())
        return None


def _explained(problem: dict[str, Any]) -> str:
    field = next((str(step) for step in problem["loc"]), "")
    match problem["type"]:
        case "json_invalid":
            return f": {problem['msg']}"
        case "model_type":
            return ': it is no JSON object; write {"prompt": ..., "answer": ...}'
        case "extra_forbidden":
            return f", {field}: unknown field; the fields are {', '.join(Line.model_fields)}"
        case "missing":
            return f", {field}: it is missing"
        case "string_too_short" | "too_short":
            return f", {field}: it is empty"
        case _:
            wanted = "text or a list of texts" if "answer" in field else "text"
            return f", {field}: it must be {wanted}, not {problem['input']!r:.60}"
