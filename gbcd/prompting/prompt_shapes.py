"""What a row of a prompt file may look like: this project's own fields, EAP-IG's and MIB's.

    {"prompt": "When Juan and John went to the store, John gave a drink to", "answer": " Juan", "wrong_answer": " John"}

Own rows are checked field by field. Rows with `clean` and `corrupted` are those of EAP-IG (Hanna et al. 2024, arXiv
2403.17806), whose answers are texts or token ids. Rows with `prompt`, `choices` and `answerKey` are those of MIB
(Mueller et al. 2025, arXiv 2504.13151), with counterfactuals in columns of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from gbcd.errors import BadInput, near

#: The task that prompts of a file belong to, and the template of those that name none.
TASK = "prompts"

UNDERSTOOD = """Understood are
  prompt, answer (and wrong_answer, counterfactual, twin, template, id): this project's own;
  clean, corrupted, and clean_answer, correct_idx or clean_answer_idx (and corrupted_answer, incorrect_idx or
  corrupted_answer_idx): EAP-IG's;
  prompt, choices, answerKey (and columns that end in _counterfactual): MIB's."""

#: MIB's choice of counterfactual for its tasks, where a row has several.
_PREFERRED = ("s2_io_flip_counterfactual", "symbol_counterfactual")


def _several(answer: Any) -> Any:
    return [answer] if isinstance(answer, str) else answer


Text = Annotated[str, Field(min_length=1)]
Answers = Annotated[list[Text], Field(min_length=1), BeforeValidator(_several)]


class Line(BaseModel):
    """A row as the fields of `gbcd.prompting.prompt.Prompt`, answers as the researcher wrote them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    prompt: Text
    answer: Answers
    wrong_answer: Answers | None = None
    counterfactual: Text | None = None
    twin: Text | None = None
    template: Text = TASK
    id: Text | None = None


def refuse_unknown(row: dict[str, Any]) -> None:
    """Check that the columns of a file's first row are of a known shape.

    Raises:
        BadInput: names the columns found and those that are understood.
    """
    if not {"prompt", "clean", "answer"} & row.keys():
        raise BadInput(f"its columns are {', '.join(map(str, row)) or 'none'}. {UNDERSTOOD}")


def line_of(row: Any, token_text: Callable[[int], str]) -> Line:
    """The row in this project's fields.

    Args:
        row: what a line of JSON, a row of CSV or of Parquet holds.
        token_text: the text of a token id, for answers that are given so.

    Raises:
        BadInput: one line for each fault, `field: what is wrong`.
    """
    if not isinstance(row, dict):
        raise BadInput('it is no JSON object; write {"prompt": ..., "answer": ...}')
    if "clean" in row:
        row = _of_eap_ig(row, token_text)
    elif "choices" in row:
        row = _of_mib(row)
    try:
        return Line.model_validate(row)
    except ValidationError as invalid:
        raise BadInput("\n".join(_explained(dict(problem)) for problem in invalid.errors())) from invalid


def _of_eap_ig(row: dict[str, Any], token_text: Callable[[int], str]) -> dict[str, Any]:
    own = {"prompt": row["clean"], "counterfactual": row.get("corrupted") or None}
    for name, text, ids in (
        ("answer", "clean_answer", ("correct_idx", "clean_answer_idx")),
        ("wrong_answer", "corrupted_answer", ("incorrect_idx", "corrupted_answer_idx")),
    ):
        numbers = [row[column] for column in ids if row.get(column) not in (None, "")]
        if row.get(text):
            own[name] = _spaced(row[text])
        elif numbers:
            own[name] = [token_text(int(number)) for number in _listed(numbers[0])]
    if "answer" not in own:
        raise BadInput("clean_answer: it is missing, and so are correct_idx and clean_answer_idx")
    return own


def _of_mib(row: dict[str, Any]) -> dict[str, Any]:
    own: dict[str, Any] = {"prompt": row.get("prompt")}
    options = row["choices"]
    # a list holds words, of which MIB puts the space in front; labels it takes as they are
    choices = list(options["label"]) if isinstance(options, dict) else [_spaced(choice) for choice in options]
    try:
        right = int(row["answerKey"])
        own["answer"] = choices[right]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise BadInput(f"answerKey: it is no place in choices: {row.get('answerKey')!r}") from error
    if wrong := [choice for place, choice in enumerate(choices) if place != right]:
        own["wrong_answer"] = wrong
    columns = [name for name, value in row.items() if str(name).endswith("_counterfactual") and value]
    if columns:
        chosen = next((name for name in _PREFERRED if name in columns), columns[0])
        own["counterfactual"] = row[chosen].get("prompt")
    return own | {name: row[name] for name in ("template", "id") if row.get(name)}


def _listed(number: Any) -> list[Any]:
    """One token id, or a list of them, which CSV writes as `[1, 2]`."""
    return (
        number.strip("[]").split(",") if isinstance(number, str) else number if isinstance(number, list) else [number]
    )


def _spaced(word: Any) -> Any:
    return f" {word}" if isinstance(word, str) and not word.startswith(" ") else word


def _explained(problem: dict[str, Any]) -> str:
    field = next((str(step) for step in problem["loc"]), "")
    match problem["type"]:
        case "extra_forbidden":
            known = [*Line.model_fields]
            return f"{field}: unknown field{near(field, known)} (the fields are {', '.join(known)})"
        case "missing":
            return f"{field}: it is missing"
        case "string_too_short" | "too_short":
            return f"{field}: it is empty"
        case _:
            wanted = "text or a list of texts" if "answer" in field else "text"
            return f"{field}: it must be {wanted}, not {problem['input']!r:.60}"
