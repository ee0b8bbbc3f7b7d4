"""What all commands print with: no window too narrow, no colour where none is wanted, Ctrl-C says how to go on."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from gbcd import cli
from gbcd.commands import terminal
from gbcd.printing import SafeConsole, counted, duration, fact, heading, table
from gbcd.run.progress import Progress, ProgressDisplay

COLUMNS = ["score", "AUROC", "Spearman", "passes"]
ROW = ["attribution patching with 5 integration steps", "0.87 [0.80, 0.93]", "0.86 [0.79, 0.91]", "11"]


@pytest.mark.parametrize("width", [20, 40, 200])
def test_nothing_is_cut_in_a_narrow_window(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    table(console, COLUMNS, [ROW], words=COLUMNS[:1])
    fact(console, "Results", "a/rather/long/folder/of/results/[for/all/of/them]")
    said = console.file.getvalue()  # pyright: ignore
    assert "…" not in said
    assert all(cell in said for cell in ROW)
    assert "Results      a/rather/long/folder/of/results/[for/all/of/them]" in said


def test_numbers_end_and_words_begin_at_the_same_place() -> None:
    console = Console(file=io.StringIO(), width=200)
    table(console, ["node", "rank"], [["a10.h11", "1"], ["m3", "100"]], words=["node"])
    lines = console.file.getvalue().splitlines()  # pyright: ignore
    assert [line.rstrip() for line in lines] == ["node      rank", "a10.h11      1", "m3         100"]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(typer.Exit) as ended, terminal.exit_status():
        (tmp_path / "file" / "below").mkdir()
    assert ended.value.exit_code == 2


def test_windows_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "IS_WINDOWS", True)
    result = CliRunner().invoke(cli.app, ["list", "tasks"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert (
        result.stderr == "error: gbcd does not run on Windows itself: run it in WSL, the Windows Subsystem for Linux\n"
    )


@pytest.mark.parametrize(("number", "said"), [(0, "0 shards"), (1, "1 shard"), (2000, "2,000 shards")])
def test_a_count_goes_with_its_noun(number: int, said: str) -> None:
    assert counted(number, "shard") == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (60.0, "1 min 00 s"),
        (200.0, "3 min 20 s"),
        (3600.0, "1 h 00 min"),
        (7500.0, "2 h 05 min"),
    ],
)
def test_durations_are_written_as_people_write_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def shown(terminal: bool, environment: dict[str, str]) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=40, _environ=environment)
    with ProgressDisplay(console) as display:
        display.show(Progress("Norms", "prompt", 1, 1, 8, 8, 1))
    console.print("[bold red]error:[/] what was wrong")
    heading(console, "scores")
    table(console, COLUMNS, [ROW], words=COLUMNS[:1])
    fact(console, "Results", "here")
    return file.getvalue()


def test_control_characters_of_a_text_never_reach_the_terminal() -> None:
    console = SafeConsole(file=io.StringIO(), force_terminal=True, width=200, highlight=False)
    hostile = "a\x1b[2J\x9b31mb"
    fact(console, "Prompt", hostile)
    table(console, ["prompt"], [[hostile]], words=["prompt"])
    heading(console, hostile)
    console.print(f"[bold]{hostile}[/]")
    said = console.file.getvalue()  # pyright: ignore
    assert said.count(r"a\x1b[2J\x9b31mb") == 4
    assert "\x1b[2J" not in said
    assert "\x1b[1m" in said


def listing(**how: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "60"}
    command = [sys.executable, "-m", "gbcd", "list", "tasks"]
    return subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False, **how)


def test_a_terminal_that_is_not_utf_8_shows_question_marks(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from gbcd.wrong_answers import wrong_answer\n\n\n"
        '@wrong_answer("einheit")\ndef unit(context):\n    """Größe."""\n'
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "gbcd", "list", "wrong-answers", "--definitions", str(file)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    assert "Gr??e" in found.stdout


def test_a_full_device_is_one_sentence() -> None:
    with open("/dev/full", "w") as full:
        found = listing(stdout=full)
    assert found.returncode == 3
    assert found.stderr.startswith("incomplete: no space is left")
    assert "Traceback" not in found.stderr


def test_a_closed_pipe_ends_in_silence() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    found = listing(stdout=writing)
    os.close(writing)
    assert found.stderr == ""
    assert found.returncode != 0


def test_what_is_no_terminal_gets_no_control_characters() -> None:
    said = shown(False, {})
    assert "\x1b" not in said
    assert "\r" not in said
    assert "8 of 8 prompts" in said


def test_colour_is_for_a_terminal_that_wants_it() -> None:
    assert "\x1b[1;31m" in shown(True, {"TERM": "xterm-256color"})
    assert ";31m" not in shown(True, {"TERM": "xterm-256color", "NO_COLOR": "1"})


@pytest.mark.parametrize(
    ("command", "again"),
    [
        ("status", "begins again"),
        ("verify", "goes on from here"),
        ("reduce", "begins again"),
        ("evaluate", "goes on from here"),
        ("report", "begins again"),
    ],
)
def test_control_c_is_status_130_and_says_how_to_go_on(
    command: str, again: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(store: object, out: str) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("gbcd.run.store.Store.__init__", interrupted)
    result = CliRunner().invoke(cli.app, [command, "results"])
    assert result.exit_code == 130
    assert f"The same command {again}" in result.stderr
