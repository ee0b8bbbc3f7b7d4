"""What all commands print with: no window too narrow, no colour where none is wanted, Ctrl-C says how to go on."""

from __future__ import annotations

import io
from typing import NoReturn

import pytest
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

from gbcd import cli, verify_command
from gbcd.job import parts
from gbcd.job.progress import ProgressDisplay, Standing, show_table


def table_of_scores() -> Table:
    table = Table(box=None)
    for column in ("score", "AUROC", "Spearman", "passes"):
        table.add_column(column, no_wrap=column == "score")
    table.add_row("attribution patching with 5 integration steps", "0.87 [0.80, 0.93]", "0.86 [0.79, 0.91]", "11")
    return table


@pytest.mark.parametrize("width", [20, 40, 200])
def test_a_table_loses_nothing_in_a_narrow_window(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    show_table(table_of_scores(), console)
    said = console.file.getvalue()  # pyright: ignore
    assert "…" not in said
    assert all(cell in said for cell in ("with 5 integration steps", "0.87 [0.80, 0.93]", "0.86 [0.79, 0.91]", "11"))


def shown(terminal: bool, environment: dict[str, str]) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=40, _environ=environment)
    with ProgressDisplay(console) as display:
        display.show(Standing(1, 1, 8, 8, 0, 0, 1, 1))
    console.print("[bold red]error:[/] what was wrong")
    show_table(table_of_scores(), console)
    return file.getvalue()


def test_what_is_no_terminal_gets_no_control_characters() -> None:
    said = shown(False, {})
    assert "\x1b" not in said
    assert "\r" not in said
    assert "8 of 8 prompts" in said


def test_colour_is_for_a_terminal_that_wants_it() -> None:
    assert "\x1b[1;31m" in shown(True, {"TERM": "xterm-256color"})
    assert ";31m" not in shown(True, {"TERM": "xterm-256color", "NO_COLOR": "1"})


@pytest.mark.parametrize("command", ["status", "verify", "compact", "reduce", "evaluate", "report"])
def test_control_c_is_status_130_and_says_how_to_go_on(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(out: str) -> NoReturn:
        raise KeyboardInterrupt

    for module in (cli, verify_command, parts):
        monkeypatch.setattr(module, "folders", interrupted)
    result = CliRunner().invoke(cli.app, [command, "results"])
    assert result.exit_code == 130
    assert "the same command goes on from here" in result.stderr
