from __future__ import annotations

import json
import os
import random
import tracemalloc
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import finished, same, small_study, tables
from test_cli import gbcd
from tiny_models import CONTEXT, saved_tiny_gpt2, small_tokenizer

import gbcd as package
from gbcd.errors import MAX_LISTED, BadInput
from gbcd.models import load as models
from gbcd.prompting import datasets, prompt_files
from gbcd.prompting.prompt import Prompt
from gbcd.prompting.prompt_rows import MAX_LINE
from gbcd.study import Study

TEXT, OTHER = "Aaron gave a drink to", "Andrew gave a drink to"
GOOD = {"prompt": TEXT, "answer": "Andrew", "wrong_answer": "Aaron", "counterfactual": OTHER}
FIRST = {"prompt": "Alan gave a drink to", "answer": "Andrew", "wrong_answer": "Alan", "id": "one"}


def written(folder: Path, *lines: dict[str, Any] | str) -> str:
    path = folder / "prompts.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return str(path)


def checked(path: str, *needs: str) -> prompt_files.PromptFile:
    return prompt_files.check(path, small_tokenizer(), CONTEXT, needs)


def refusal(path: str, *needs: str) -> str:
    with pytest.raises(BadInput) as refused:
        checked(path, *needs)
    return str(refused.value)


def test_every_field_arrives(tmp_path: Path) -> None:
    full = GOOD | {"twin": "Andrew gave a drink to", "template": "gave", "id": "first", "answer": ["Andrew", "Alan"]}
    bare = {"prompt": "The war lasted from 1517 to 15", "answer": "18"}
    file = checked(written(tmp_path, full, "", bare))
    assert list(file.read([1, 0])) == [
        Prompt("prompts/000003", "prompts", "prompts", bare["prompt"], ("18",)),
        Prompt("first", "prompts", "gave", full["prompt"], ("Andrew", "Alan"), ("Aaron",), full["twin"], full["twin"]),
    ]


def test_a_space_is_added_only_where_the_answer_is_no_token_without(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    words = datasets.words("words") + datasets.words("places") + datasets.words("objects")
    [word, *_] = [w for w in words if len(tokenizer.encode(w)) > 1 == len(tokenizer.encode(f" {w}"))]
    lines = [{"prompt": "Aaron saw the", "answer": answer} for answer in (word, f" {word}", "Andrew")]
    answers = [next(checked(written(tmp_path, line)).read([0])).answers for line in lines]
    assert answers == [(f" {word}",), (f" {word}",), ("Andrew",)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": ', "line 2, column 11: Invalid JSON: Expecting value"),
        ('  {"prompt": "Aaron', "line 2, column 14: Invalid JSON: Unterminated string"),
        ('["prompt"]', "line 2: it is no JSON object"),
        ("{}", "line 2, prompt: it is missing"),
        (
            GOOD | {"anwser": "x"},
            "line 2, anwser: unknown field; did you mean answer or wrong_answer? (the fields are prompt, ",
        ),
        (GOOD | {"colour": "x"}, "line 2, colour: unknown field (the fields are prompt, answer"),
        (GOOD | {"answer": 3}, "line 2, answer: it must be text or a list of texts, not 3"),
        (GOOD | {"answer": ["Andrew", 3]}, "line 2, answer: it must be text or a list of texts, not 3"),
        (GOOD | {"twin": ["x"]}, "line 2, twin: it must be text, not ['x']"),
        (GOOD | {"prompt": ""}, "line 2, prompt: it is empty"),
        (GOOD | {"prompt": " \n "}, "line 2, prompt: it is empty"),
        (GOOD | {"answer": []}, "line 2, answer: it is empty"),
        (
            GOOD | {"answer": "Andrew Jane"},
            "line 2, answer: answer 'Andrew Jane' is not one token but ['Andrew', ' ', 'J', 'a', 'n', 'e']",
        ),
        (GOOD | {"wrong_answer": "Andrew"}, "line 2, wrong_answer: it is the answer: 'Andrew'"),
        (GOOD | {"answer": ["Andrew", "Andrew"]}, "line 2, answer: a token is named twice"),
        (GOOD | {"counterfactual": TEXT}, "line 2, counterfactual: it is the prompt itself"),
        (GOOD | {"prompt": "and" * CONTEXT, "counterfactual": None}, f"more than the model's context of {CONTEXT}"),
        (GOOD | {"twin": " and" * 1030}, "line 2, twin: it has 1,030 tokens, more than"),
        ({"prompt": "other", "answer": "Andrew"}, "line 2, wrong_answer: it is missing, and foil cannot do without"),
        (json.dumps(GOOD)[:-1] + ', "answer": "Alan"}', "line 2, answer: it is named twice"),
        (GOOD | {"id": "one"}, "line 2, id: 'one' is that of line 1 too"),
        ('{"prompt": "\\ud800", "answer": "Andrew"}', "line 2: Invalid JSON"),
    ],
)
def test_a_fault_is_named_with_line_and_field(tmp_path: Path, line: dict[str, Any] | str, said: str) -> None:
    message = refusal(written(tmp_path, FIRST, line), "foil")
    assert said in message
    assert "prompts.jsonl" in message


def test_all_faults_are_told_at_once_up_to_a_limit(tmp_path: Path) -> None:
    bad = [{"prompt": "", "answer": "Andrew Jane"}, {"promt": "x"}, {"prompt": "x", "answer": 1, "id": ""}]
    message = refusal(written(tmp_path, *bad))
    assert "has 6 problems" in message
    for place in ("1, prompt", "2, prompt", "2, answer", "2, promt", "3, answer", "3, id"):
        assert f"line {place}:" in message
    message = refusal(written(tmp_path, *[{"prompt": 1}] * 30))
    assert len(message.splitlines()) == MAX_LISTED + 2
    assert message.endswith("... and 40 more")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "holds no prompts"),
        (b"\n \n", "holds no prompts"),
        (json.dumps(GOOD).encode("utf-16"), "UTF-16"),
        (b'{"prompt": "caf\xe9", "answer": "Andrew"}', "line 1: byte 16 is not UTF-8"),
        (b'{"prompt": "x", "answer": "' + b"a" * 10_000_000 + b'"}\n{}', f"10,000,030 bytes, more than {MAX_LINE:,}"),
    ],
)
def test_what_is_no_prompt_file_is_refused(tmp_path: Path, raw: bytes, said: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(raw)
    assert said in refusal(str(path))


def test_lines_go_on_after_one_that_is_too_long(tmp_path: Path) -> None:
    message = refusal(written(tmp_path, GOOD, "x" * (MAX_LINE + 7), GOOD | {"prompt": ""}))
    assert "line 2: it has" in message
    assert "line 3, prompt:" in message


def test_a_mark_in_front_of_utf8_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert next(checked(str(path)).read([0])).text == GOOD["prompt"]


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(str(tmp_path / "none.jsonl"))
    assert "no regular file" in refusal(str(tmp_path))


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    with pytest.raises(BadInput, match=f"prompt file '{pipe}': it does not exist, or is no regular file"):
        prompt_files.sha256(pipe)


@settings(deadline=None, max_examples=40)
@given(raw=st.binary(max_size=200))
def test_no_bytes_break_the_reader(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(raw)
    with pytest.raises(BadInput):
        checked(str(path))


def peak(folder: Path, n: int) -> int:
    path = written(folder, *({"prompt": f"{' and' * 200} {number:05d}", "answer": "Andrew"} for number in range(n)))
    tracemalloc.start()
    file = prompt_files.check(path, small_tokenizer())
    assert sum(1 for _ in file.read(range(n))) == n
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def test_memory_grows_by_a_fraction_of_the_text(tmp_path: Path) -> None:
    few, many_lines = 600, 2000
    peak(tmp_path, few)  # fills caches
    assert peak(tmp_path, many_lines) - peak(tmp_path, few) < 500 * (many_lines - few)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_tiny_gpt2(tmp_path_factory.mktemp("model"))


def many(n: int) -> list[dict[str, Any]]:
    rng = random.Random(0)
    names = ["Andrew", "Aaron", "Alan", "Albert", "Anthony"]
    lines: list[dict[str, Any]] = []
    for number in range(n):
        one, other = rng.sample(names, 2)
        text = f"{number} {one} and {other} went to the store, {one} gave a drink to"
        lines.append({"prompt": text, "answer": f" {other}", "wrong_answer": f" {one}", "template": f"t{number % 3}"})
    return lines


def own(folder: Path, model: str, path: str) -> Study:
    fields = small_study(folder, model=model).model_dump(exclude={"tasks", "prompts_per_task"})
    return Study.model_validate(fields | {"prompts": path})


def test_a_file_runs_and_workers_need_it_no_more(tmp_path: Path, model: str) -> None:
    path = written(tmp_path, *many(20))
    study = own(tmp_path, model, path)
    run = finished(study)
    assert run.missing == ()
    found = package.prompts(study.out).collect()
    assert found["task"].unique().to_list() == ["prompts"]
    assert set(found["prompt"]) == {line["prompt"] for line in many(20)}
    assert run.plan.sources.hashes["prompts:prompts"] == prompt_files.sha256(path)
    order = found.filter(pl.col("wrong_answer") == "inverse_logits")["prompt_id"].to_list()
    assert order != sorted(order)
    before = tables(study.out)
    assert finished(study).found == len(run.plan.shards)
    assert same(tables(study.out), before)
    written(tmp_path, *many(21))
    with pytest.raises(BadInput, match=r"holds another study.*\n.*hashes\.prompts:prompts"):
        finished(study)


def test_the_command_line_takes_a_number_or_a_file(tmp_path: Path, model: str) -> None:
    path, out = written(tmp_path, *many(6)), tmp_path / "out"
    flags = ["--model", model, "--device", "cpu", "--out", str(out)]
    status, said, refused = gbcd("plan", "--prompts", path, "--task", "ioi", *flags)
    assert (status, said) == (2, "")
    assert "exclude each other" in refused
    status, _, refused = gbcd("plan", "--prompts", written(tmp_path, GOOD, {}), *flags)
    assert status == 2
    assert "line 2, answer: it is missing" in refused
    assert not out.exists()
    study = tmp_path / "study.toml"
    study.write_text('tasks = ["ioi"]\nprompts_per_task = 5\n')
    status, said, _ = gbcd("plan", str(study), "--prompts", written(tmp_path, *many(6)), *flags)
    assert status == 0
    assert "Prompts      6 for " in said


def test_the_prompts_of_a_compiled_model_run_from_their_file(tmp_path: Path) -> None:
    source = models.SHIPPED["tracr_reverse"]
    out, flags = str(tmp_path / "out"), ["--workers", "0", "--device", "cpu", "--wrong-answer", "foil"]
    file = str(source / "prompts.jsonl")
    status, said, _ = gbcd("run", "--prompts", file, "--model", str(source), *flags, "--out", out)
    assert status == 0
    assert "363 of 363 prompts" in said
    found = package.prompts(out).collect()
    assert found["correct"].all()
    lines = [json.loads(line) for line in (source / "prompts.jsonl").read_text().splitlines()]
    assert set(found["prompt", "wrong_token"].iter_rows()) == {(line["prompt"], line["wrong_answer"]) for line in lines}
    status, _, refused = gbcd("run", "--prompts", written(tmp_path, {"prompt": "1 2", "answer": "2 9"}), "--model",
                              str(source), *flags, "--out", str(tmp_path / "other"))  # fmt: skip
    assert status == 2
    assert "line 1, answer: '9' is no output of this model; its outputs are 1, 2, 3" in refused
    assert not (tmp_path / "other").exists()
