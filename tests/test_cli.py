from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from documented_commands import checked
from small_runs import finished, small_study
from typer.testing import CliRunner

from gbcd.cli import app

#: The example of each command, by its name.
EXAMPLES = {
    command.name or command.callback.__name__: command.epilog.removeprefix("Example: gbcd ")  # pyright: ignore
    for command in app.registered_commands
}


def gbcd(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    finished(small_study(folder))
    return folder


@pytest.mark.parametrize("command", EXAMPLES)
def test_every_command_explains_itself_with_an_example_of_its_own(command: str) -> None:
    status, said, _ = gbcd(command, "--help")
    assert status == 0
    assert f"Example: gbcd {command}" in said
    words = shlex.split(EXAMPLES[command])
    assert words[0] == command
    checked(["gbcd", *words])  # other tests run every command


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "attributions and gradient norms of every component"),
        *(([command], "a directory or a GGUF file") for command in ("doctor", "plan", "run", "show")),
    ],
)
def test_the_help_says_what_is_scored_and_which_models_are_taken(words: list[str], said: str) -> None:
    assert said in " ".join(gbcd(*words, "--help")[1].replace("│", " ").split())


def test_a_run_says_what_it_found_and_where_it_lies(folder: Path, tmp_path: Path) -> None:
    flags = ["--task", "ioi", "--model", str(folder / "model"), "--prompts", "16", "--workers", "0", "--device", "cpu"]
    out = str(tmp_path / "out")
    status, said, _ = gbcd("run", *flags, "--wrong-answer", "foil", "--shard-size", "8", "--out", out)
    assert status == 0
    assert re.search(r"^ +1 +[am]\d.* to ", said, re.MULTILINE)
    assert "16 of 16 prompts, in 2 of 2 shards; this run took" in said
    assert out in said.replace("\n", "")


def test_a_study_file_and_a_flag_make_the_same_run(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text(
        f'model = "{folder / "model"}"\ntasks = ["ioi"]\nprompts_per_task = 99\nwrong_answers = ["foil"]\n'
        f'out = "{tmp_path / "out"}"\n[compute]\nworkers = 0\ndevice = "cpu"\nshard_size = 4\n'
    )
    status, said, _ = gbcd("plan", str(file), "--prompts", "12")
    assert status == 0
    assert "Shards       3 of up to 4 prompts" in said
    assert gbcd("status", str(tmp_path / "out"))[1].splitlines()[1] == "Prompts      0 of 12 (0%)"
    assert gbcd("verify", str(tmp_path / "out"))[0] == 3
    assert gbcd("run", str(file), "--prompts", "12")[0] == 0
    assert gbcd("verify", str(tmp_path / "out"))[0] == 0


def test_a_plan_names_the_prompts_that_calibration_will_not_reach(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text(
        f'model = "{folder / "model"}"\ntasks = ["ioi"]\nprompts_per_task = 12\ncalibration_prompts = 4\n'
        f'out = "{tmp_path / "out"}"\n[compute]\ndevice = "cpu"\nbatch_size = 4\n'
    )
    status, said, _ = gbcd("plan", str(file))
    assert status == 0
    assert "Compute      on cpu, in batches of 4" in said
    assert "centred by position" in said
    assert "ioi: 12 of 12 prompts will have no centred norm. It takes 8 prompts of their length" in said


def test_status_and_verify_speak_of_a_finished_run(folder: Path) -> None:
    status, said, _ = gbcd("status", str(folder / "out"))
    assert status == 0
    assert "Prompts      40 of 40 (100%)" in said
    status, said, _ = gbcd("verify", str(folder / "out"))
    assert status == 0
    assert said.startswith("Sound        40 prompts, each exactly once")


def test_repair_computes_what_is_bad(folder: Path) -> None:
    (folder / "out" / "commits" / "00003.json").write_text("{")
    status, said, refused = gbcd("verify", str(folder / "out"))
    assert status == 3
    assert "Bad          shard 3" in said
    assert "gbcd verify --repair" in refused
    status, said, _ = gbcd("verify", str(folder / "out"), "--repair", "--workers", "0")
    assert status == 0
    assert "Sound        40 prompts" in said


def test_reduce_writes_the_summary_again(folder: Path) -> None:
    before = (folder / "out" / "summary.parquet").read_bytes()
    (folder / "out" / "summary.parquet").unlink()
    assert gbcd("reduce", str(folder / "out"))[0] == 0
    assert (folder / "out" / "summary.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--task", "ioi"], "out is missing"),
        (["run", "--task", "ioy", "--out", "x"], "did you mean ioi"),
        (["run", "--task", "ioi", "--out", "x", "--prompts", "0"], "prompts_per_task = 0"),
        (["run", "none.toml"], "'none.toml' cannot be read: No such file or directory\n"),
        (["init", "none/x.toml"], "'none/x.toml' cannot be written: No such file or directory\n"),
        (["status", "nowhere"], "holds no plan.json"),
        (["verify", "nowhere"], "holds no plan.json"),
        (["reduce", "nowhere"], "nowhere"),
        (["list", "planets"], "planets"),
        (["fly"], "No such command"),
    ],
)
def test_bad_input_is_status_2_with_one_clear_sentence(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, refused = gbcd(*arguments)
    assert status == 2
    assert said in refused
    assert list(tmp_path.iterdir()) == []


def test_lists_describe_what_there_is() -> None:
    assert re.search(r"^ioi +\S", gbcd("list", "tasks")[1], re.MULTILINE)
    assert re.search(r"^inverse_logits +Cross-entropy", gbcd("list", "wrong-answers")[1], re.MULTILINE)


def test_several_studies_run_one_after_the_other_and_the_worst_status_counts(folder: Path, tmp_path: Path) -> None:
    files = [str(tmp_path / f"{name}.toml") for name in ("bad", "good")]
    for file, task in zip(files, ("ioy", "ioi"), strict=True):
        Path(file).write_text(
            f'model = "{folder / "model"}"\ntasks = ["{task}"]\nwrong_answers = ["foil"]\n'
            f'out = "{tmp_path / task}"\n[compute]\nworkers = 0\ndevice = "cpu"\n'
        )
    status, said, refused = gbcd("run", *files, "--prompts", "1.2e1")
    assert status == 2
    assert "did you mean ioi" in refused
    assert "12 of 12 prompts" in said
    status, _, refused = gbcd("run", *files, "--out", str(tmp_path / "one"))
    assert status == 2
    assert "several studies have one folder" in refused
    assert not (tmp_path / "one").exists()


def test_a_folder_with_a_space_is_quoted_and_the_home_is_meant(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    flags = ["--task", "ioi", "--model", str(folder / "model"), "--prompts", "12", "--workers", "0", "--device", "cpu"]
    status, said, _ = gbcd("run", *flags, "--wrong-answer", "foil", "--out", "~/two words")
    assert status == 0
    assert (tmp_path / "two words" / "plan.json").exists()
    assert f"gbcd evaluate '{tmp_path / 'two words'}'" in said.replace("\n", "")


@pytest.mark.parametrize("number", ["1.5", "0", "-3"])
def test_a_number_of_prompts_is_whole_and_at_least_one(number: str) -> None:
    status, _, refused = gbcd("plan", "--task", "ioi", "--prompts", number, "--out", "x")
    assert status == 2
    assert "prompts" in refused
