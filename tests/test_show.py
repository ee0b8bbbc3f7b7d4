from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from test_cli import gbcd
from tiny_models import saved_tiny_gpt2

from gbcd import tasks, wrong_answers
from gbcd.commands.described_prompt import chosen, described
from gbcd.commands.show import print_prompts
from gbcd.models import load as models
from gbcd.models.load import LoadedModel


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return models.load(saved_tiny_gpt2(tmp_path_factory.mktemp("model")), "cpu")


def printed(loaded: LoadedModel, task: str, n: int = 1, width: int = 200) -> list[str]:
    out = io.StringIO()
    print_prompts(described(chosen(loaded, task, None, n, 0), loaded, None), Console(file=out, width=width))
    return out.getvalue().splitlines()


def line(lines: list[str], label: str) -> str:
    return next(text.strip().removeprefix(label).strip() for text in lines if text.strip().startswith(label))


def test_what_is_shown_is_what_a_run_would_see(loaded: LoadedModel) -> None:
    [prompt] = tasks.draw("ioi", loaded.tokenizer, 1, 0)
    lines = printed(loaded, "ioi")
    assert line(lines, "prompt").replace("|", "") == prompt.text.strip()
    assert line(lines, "counterfactual").replace("|", "") == (prompt.counterfactual or "").strip()
    assert line(lines, "answer").startswith(repr(prompt.answers[0]))
    assert line(lines, "foil").startswith(repr(prompt.wrong_answers[0]))
    logits = loaded.model(torch.tensor([loaded.tokenizer.encode(prompt.text)])).logits[0, -1]
    first, last = (repr(loaded.tokenizer.decode([int(place)])) for place in (logits.argmax(), logits.argmin()))
    assert line(lines, "model predicts").startswith(f"{first} ({float(logits.softmax(0).max()):.3g})")
    assert line(lines, "least_likely").startswith(last)
    assert line(lines, "inverse_logits").startswith(f"a distribution: {last}")


@pytest.mark.parametrize("task", ["docstring", "greater_than", "induction", "ioi"])
def test_every_definition_has_a_line_in_a_narrow_window(loaded: LoadedModel, task: str) -> None:
    lines = printed(loaded, task, n=2, width=50)
    assert max(map(len, lines)) <= 50
    assert all(sum(text.strip().startswith(name) for text in lines) == 2 for name in wrong_answers.names())


def test_a_long_set_is_cut_short(loaded: LoadedModel) -> None:
    [prompt] = tasks.draw("greater_than", loaded.tokenizer, 1, 0)
    assert f"and {len(prompt.answers) - 6} more" in line(printed(loaded, "greater_than"), "answer")


def test_the_command_shows_a_file_or_a_task(loaded: LoadedModel, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    line = {"prompt": "Aaron saw the", "answer": " table", "counterfactual": "Aaron saw the war and the"}
    file.write_text(json.dumps(line) + "\n")
    own, other = (len(loaded.tokenizer.encode(line[field])) for field in ("prompt", "counterfactual"))
    status, said, _ = gbcd("show", "--prompts", str(file), "--model", loaded.name)
    assert status == 0
    assert "' table'" in said
    assert f"(counterfactual: {other} tokens, prompt {own}: not used)" in said
    assert "foil compares with the task's own wrong answer" in " ".join(said.split())
    for arguments, reason in (
        ([], "say what to show"),
        (["ioi", "-n", "0"], "at least 1"),
        (["ioy"], "unknown task 'ioy'"),
    ):
        status, said, refused = gbcd("show", *arguments, "--model", loaded.name)
        assert (status, said) == (2, "")
        assert reason in refused
