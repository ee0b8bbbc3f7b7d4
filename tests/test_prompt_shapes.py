"""Files as the field writes them: EAP-IG's CSV, MIB's rows, and every container that prompts come in."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from field_tokenizers import FIELD, field_tokenizer
from test_cli import gbcd
from tiny_models import CONTEXT, saved_tiny_gpt2, small_tokenizer

from gbcd.errors import BadInput
from gbcd.prompting import prompt_files
from gbcd.prompting.continuations import continuations
from gbcd.prompting.notes import Notes
from gbcd.prompting.prompt import Prompt
from gbcd.prompting.tokens import encode

OWN = [
    {"prompt": "Aaron gave a drink to", "answer": " Andrew", "wrong_answer": " Aaron"},
    {"prompt": "Alan gave a drink to", "answer": " Albert", "wrong_answer": " Alan"},
]


def read(path: Path) -> list[Prompt]:
    file = prompt_files.check(str(path), small_tokenizer(), CONTEXT)
    return list(file.read(range(len(file))))


def refusal(path: Path) -> str:
    with pytest.raises(BadInput) as refused:
        read(path)
    return str(refused.value)


def csv_file(path: Path, *rows: dict[str, Any]) -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue())
    return path


def eap_row(one: str, other: str, third: str, **answers: Any) -> dict[str, Any]:
    """A row of EAP-IG's IOI file, with the index that pandas leaves."""
    text = f"When {one} and {other} went to the store, {{}} gave a drink to"
    return {"": 7, "clean": text.format(other), "corrupted": text.format(third), **answers}


def mib_row(one: str, other: str, third: str) -> dict[str, Any]:
    """A row of MIB's IOI, with two of its counterfactuals."""
    text = f"When {one} and {other} went to the store, {{}} gave a drink to"
    names = [one, other]

    def called(subject: str, answer: int) -> dict[str, Any]:
        return {"prompt": text.format(subject), "choices": names, "answerKey": answer}

    return {
        "template": "When {A} and {B} went to the {place}, {S} gave a {object} to",
        "metadata": {"subject": other, "indirect_object": one},
        **called(other, 0),
        "abc_counterfactual": called(third, 0),
        "s2_io_flip_counterfactual": called(one, 1),
    }


def token(text: str) -> int:
    return continuations([text], small_tokenizer())[0].ids[0]


def test_eap_ig_with_token_ids(tmp_path: Path) -> None:
    ids = {"correct_idx": token(" Andrew"), "incorrect_idx": token(" John")}
    [prompt] = read(csv_file(tmp_path / "ioi.csv", eap_row("Andrew", "John", "Alan", **ids)))
    assert (prompt.answers, prompt.wrong_answers) == ((" Andrew",), (" John",))
    assert prompt.text.endswith("store, John gave a drink to")
    assert prompt.counterfactual == prompt.text.replace(", John", ", Alan")


def test_eap_ig_with_texts_and_with_lists_of_ids(tmp_path: Path) -> None:
    row = eap_row("Andrew", "John", "Alan", clean_answer="Andrew", corrupted_answer=" John", clean_answer_idx=3)
    [prompt] = read(csv_file(tmp_path / "texts.csv", row))
    assert (prompt.answers, prompt.wrong_answers) == ((" Andrew",), (" John",))
    several = f"[{token(' Andrew')}, {token(' Alan')}]"
    [prompt] = read(csv_file(tmp_path / "ids.csv", eap_row("Andrew", "John", "Alan", correct_idx=several)))
    assert prompt.answers == (" Andrew", " Alan")


def test_token_ids_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    message = refusal(csv_file(tmp_path / "llama.csv", eap_row("Andrew", "John", "Alan", correct_idx=47764)))
    assert "line 2: token id 47764 is no word of this model's tokenizer" in message


def test_mib_rows_from_json_lines_and_parquet(tmp_path: Path) -> None:
    rows = [mib_row("Andrew", "John", "Alan"), mib_row("Albert", "Aaron", "Ryan")]
    (tmp_path / "mib.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mib.parquet")
    prompts = read(tmp_path / "mib.jsonl")
    assert read(tmp_path / "mib.parquet") == prompts
    first = prompts[0]
    assert (first.answers, first.wrong_answers) == ((" Andrew",), (" John",))
    assert first.counterfactual == first.text.replace(", John", ", Andrew")
    assert first.template.startswith("When {A} and {B}")


def test_mib_labels_are_taken_as_they_are(tmp_path: Path) -> None:
    """Multiple choice: the answer is a letter, the other letters are wrong."""
    row = {"prompt": "Answer:", "choices": {"label": ["A", "B", "C"], "text": ["x", "y", "z"]}, "answerKey": 1}
    (tmp_path / "mcqa.jsonl").write_text(json.dumps(row) + "\n")
    [prompt] = read(tmp_path / "mcqa.jsonl")
    assert (prompt.answers, prompt.wrong_answers, prompt.counterfactual) == (("B",), ("A", "C"), None)


@pytest.mark.parametrize("key", [7, None, "first"])
def test_an_answer_key_that_is_no_place_is_refused(tmp_path: Path, key: Any) -> None:
    (tmp_path / "mib.jsonl").write_text(json.dumps(mib_row("Andrew", "John", "Alan") | {"answerKey": key}) + "\n")
    assert "line 1, answerKey: it is no place in choices" in refusal(tmp_path / "mib.jsonl")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("p.jsonl", lambda rows: "\n".join(map(json.dumps, rows)).encode()),
        ("mac.jsonl", lambda rows: "\r".join(map(json.dumps, rows)).encode()),
        ("dos.jsonl", lambda rows: "\r\n".join(map(json.dumps, rows)).encode()),
        ("array.json", lambda rows: json.dumps(rows, indent=1).encode()),
        ("p.jsonl.gz", lambda rows: gzip.compress("\n".join(map(json.dumps, rows)).encode())),
        ("no_suffix", lambda rows: gzip.compress("\n".join(map(json.dumps, rows)).encode())),
        ("p.csv", lambda rows: b"prompt,answer,wrong_answer\r\n" + b"".join(
            ",".join(row.values()).encode() + b"\r\n" for row in rows)),
        ("p.tsv.gz", lambda rows: gzip.compress(b"prompt\tanswer\twrong_answer\n" + b"".join(
            "\t".join(row.values()).encode() + b"\n" for row in rows))),
    ],
)  # fmt: skip
def test_every_container_gives_the_same_prompts(tmp_path: Path, name: str, write: Any) -> None:
    (tmp_path / name).write_bytes(write(OWN))
    prompts = read(tmp_path / name)
    assert [(p.text, p.answers, p.wrong_answers) for p in prompts] == [
        (row["prompt"], (row["answer"],), (row["wrong_answer"],)) for row in OWN
    ]


@pytest.mark.parametrize(
    ("name", "raw", "said"),
    [
        ("p.jsonl", b'{"question": "x", "label": 3}', "its columns are question, label. Understood are"),
        ("p.csv", b"clean,corrupted,label\nx,y,12\n", "line 2: clean_answer: it is missing, and so are correct_idx"),
        ("p.csv", b"prompt,answer\na,b,c\n", "line 2: it has more cells than the first line has columns"),
        ("p.gz", gzip.compress(b"x" * 99, mtime=0)[:-9], "it is damaged or cut off"),
        ("p.parquet", b"PAR1" + b"x" * 99, "it is damaged or cut off"),
        ("p.json", b'[{"prompt": ', "Invalid JSON"),
        ("p.csv", b"prompt,answer\n\xe9,b\n", "is not UTF-8"),
    ],
)
def test_what_is_not_understood_is_named(tmp_path: Path, name: str, raw: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(raw)
    assert said in refusal(tmp_path / name).replace("line 2, clean_answer", "line 2: clean_answer")


def test_a_prompt_that_occurs_twice_is_kept_and_counted(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in [*OWN, OWN[0]]))
    prompts = read(tmp_path / "p.jsonl")
    assert [prompt.text for prompt in prompts].count(OWN[0]["prompt"]) == 2
    notes = Notes(small_tokenizer())
    notes.add(encode(prompts[:2], small_tokenizer()))
    notes.add(encode(prompts[2:], small_tokenizer()))
    assert notes.sentences() == ["1 of 3 prompts occur more than once: they are kept, and count as often"]


@pytest.mark.parametrize("name", FIELD)
def test_what_is_unusual_in_a_prompt_is_said(name: str) -> None:
    tokenizer = field_tokenizer(name)

    def said(text: str, answer: str) -> str:
        notes = Notes(tokenizer)
        notes.add(encode([Prompt("p/0", "prompts", "t", text, (answer,))], tokenizer))
        return " ".join(notes.sentences())

    assert said("Mary gave a drink to", " John") == ""
    assert "end in a space" in said("Mary gave a drink to ", "John")
    doubled = "begin with two beginning-of-text tokens"
    assert (doubled in said("<s>Mary gave a drink to", " John")) == (name == "llama2")


def test_an_answer_that_does_not_join_is_said() -> None:
    """Llama 3 has 173 as one token."""
    tokenizer = field_tokenizer("llama3")
    notes = Notes(tokenizer)
    notes.add(encode([Prompt("p/0", "prompts", "t", "The war lasted from 17", ("3",))], tokenizer))
    assert "do not go on with their answer as a token of its own" in " ".join(notes.sentences())


def test_a_file_of_the_field_runs(tmp_path: Path) -> None:
    names = ["Ryan", "John", "Alan", "Andrew", "Aaron", "Albert"]
    rows = [mib_row(a, b, c) for a in names for b in names for c in names[:1] if len({a, b, c}) == 3]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mib.parquet")
    model = saved_tiny_gpt2(tmp_path / "model")
    status, said, refused = gbcd("show", "--prompts", str(tmp_path / "mib.parquet"), "--model", model, "-n", "1")
    assert (status, refused) == (0, "")
    assert "foil" in said
    status, said, refused = gbcd("plan", "--prompts", str(tmp_path / "mib.parquet"), "--model", model, "--device",
                                 "cpu", "--wrong-answer", "foil", "--out", str(tmp_path / "out"))  # fmt: skip
    assert status == 0, refused
    assert f"{len(rows)} for" in said
