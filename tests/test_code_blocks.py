"""Every code block of README and docs is run as it stands, each kind in its own way; of another kind it fails.

python    executed beside `results/ioi`, which the README's first command, `make run`, has made; if it begins with the
          name of a file, commands find it there
sh        every command run there, on fewer prompts (`documented_commands.py` says what cannot run here, and why)
console   likewise, and what it prints is what the page shows
toml      read as a study
jsonl     checked as prompts for the shipped model
text      a listing of a results folder, held against one
"""

from __future__ import annotations

import re
import shutil
import warnings
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
from code_blocks import BLOCKS, ROOT, Block, commands, mentioned, of_kind
from documented_commands import ELSEWHERE, checked, invoked, made_by, ran
from evaluation_cases import context_of
from processes import started

from gbcd import tasks, wrong_answers
from gbcd.cli import app
from gbcd.commands.terminal import console
from gbcd.evaluation import baselines
from gbcd.evaluation.evaluation_plan import pair_up
from gbcd.evaluation.metrics import metric_for
from gbcd.evaluation.score_context import ScoreContext
from gbcd.models.load import load
from gbcd.prompting import prompt_files
from gbcd.prompting.tokens import encode
from gbcd.study import read_study

KINDS = {"python", "sh", "console", "toml", "jsonl", "text"}

#: The README's command that makes what all blocks are run beside.
MAIN = ["make", "run"]

#: The block that evaluates these results, which takes seconds.
[EVALUATES] = [block for block in of_kind("python") if "gbcd.evaluate(" in block.code]

#: What lies in a results folder only now and then, and where it is tested.
SELDOM = {
    "given_up/": "after failures: test_run.py",
    "moments/": "where a study asks for edges or neurons: test_neurons.py",
    "neurons.parquet": "where a study asks for neurons: test_neurons.py",
    "edges.parquet": "where a study asks for edges: test_collect.py",
    "report.html": "not where a study is only planned: test_report.py",
}


def command_and_code(words: list[str], code: str) -> None:
    """As a user does, without the checks of the tests."""
    app(words, standalone_mode=False)
    exec(code, {"__name__": "__main__"})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the README's results, on fewer prompts and evaluated, and what commands of the documents read."""
    where = tmp_path_factory.mktemp("documents")
    for name in ("jobs", "cluster.yaml"):
        (where / name).symlink_to(ROOT / name)
    words = [*made_by(MAIN)[1:], "--prompts", "96", "--workers", "0"]
    status, _, said = started(where.parent / "said", command_and_code, words, EVALUATES.code, folder=where).ended()
    assert status == 0, said
    shutil.copytree(ROOT / "gbcd" / "tracr" / "models" / "reverse", where / "models" / "mine")
    [prompts] = of_kind("jsonl")
    (where / "my_prompts.jsonl").write_text(prompts.code)
    for block in of_kind("python"):
        if named := re.match(r"# (\w+\.py)\n", block.code):
            (where / named[1]).write_text(block.code)
    return where


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: None) -> Path:
    """A copy to work in, as the present folder."""
    where = tmp_path / "folder"
    shutil.copytree(made, where, symlinks=True)
    monkeypatch.chdir(where)
    monkeypatch.setattr(console, "width", 92)  # as wide as a block of the site
    monkeypatch.setattr("gbcd.commands.doctor.ray_works", lambda: "not started in this test")
    return where


def test_every_block_is_of_a_kind_that_is_run() -> None:
    assert [f"{block} ({block.kind or 'says no kind'})" for block in BLOCKS if block.kind not in KINDS] == []


@pytest.mark.parametrize("block", [block for block in of_kind("python") if block != EVALUATES], ids=str)
def test_python_runs(block: Block, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if block.page != "README.md":
        warnings.filterwarnings("ignore", ".*no centered_grad_norm")  # few prompts, as a page has
    exec(compile(block.code, str(block), "exec"), {"__name__": "__main__"})
    assert bool(capsys.readouterr().out) == ("print(" in block.code)
    for name in re.findall(r'^@task\("(\w+)"', block.code, re.MULTILINE):
        tokenizer = load("reference", "cpu").tokenizer
        assert pair_up(encode(tasks.draw(name, tokenizer, 4, 0), tokenizer)).refused == []  # can be evaluated
    for name in re.findall(r'^@wrong_answer\("(\w+)"', block.code, re.MULTILINE):
        assert wrong_answers.get(name).summary
    for name in re.findall(r'^@baseline\("(\w+)"', block.code, re.MULTILINE):
        assert np.isfinite(baselines.every_baseline()[name].values(_context())).all()


def _context() -> ScoreContext:
    """What a score is given when the shipped model is evaluated."""
    loaded = load("reference", "cpu")
    encoded = encode(tasks.draw("ioi", loaded.tokenizer, 4, 0), loaded.tokenizer)
    return context_of(loaded, encoded, metric_for("logit_difference", encoded, loaded.device))


@pytest.mark.parametrize("block", of_kind("sh"), ids=str)
def test_commands_run(block: Block, folder: Path) -> None:
    for words in commands(block.code):
        if words != MAIN:
            ran(words)


@pytest.mark.filterwarnings("default")  # of the embedding library
@pytest.mark.parametrize("block", of_kind("console"), ids=str)
def test_a_command_prints_what_the_page_shows(block: Block, folder: Path) -> None:
    command, shown = block.code.removeprefix("$ ").split("\n", 1)
    [words] = commands(command)
    assert ran(words).strip() == shown.strip()


@pytest.mark.parametrize("block", of_kind("toml"), ids=str)
def test_a_study_is_one(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text(block.code)
    study = read_study(file)
    assert set(study.tasks) <= set(tasks.names())
    assert set(study.wrong_answers) <= set(wrong_answers.names())


@pytest.mark.parametrize("block", of_kind("jsonl"), ids=str)
def test_prompts_are_what_the_shipped_model_takes(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "my_prompts.jsonl"
    file.write_text(block.code)
    model = load("reference", "cpu")
    read = prompt_files.check(str(file), model.tokenizer, model.context, ["foil"])
    assert len(read) == len(block.code.splitlines())


@pytest.mark.parametrize("block", of_kind("text"), ids=str)
def test_a_listing_names_what_a_study_leaves(block: Block, folder: Path) -> None:
    """Both ways: nothing lies there that is not named, and nothing is named that cannot lie there."""
    named = [name for line in block.code.splitlines() for name in re.split(r"  +", line)[0].split()]
    out = Path("results/ioi" if "plan.json" in named else "several")
    if not out.exists():
        invoked("plan", "--task", "ioi", "--task", "tracr_reverse", "--prompts", "16", "--out", str(out))
    there = [f"{path.name}/" if path.is_dir() else path.name for path in out.iterdir()]
    assert [name for name in there if not any(fnmatch(name, pattern) for pattern in named)] == []
    assert {name for name in named if not any(fnmatch(found, name) for found in there)} <= SELDOM.keys()


def test_commands_in_sentences_and_docstrings_are_what_the_programs_take() -> None:
    found = mentioned()
    assert len(found) > 60
    for words in found:
        checked(words)


def test_what_is_left_to_run_elsewhere_is_still_told() -> None:
    told = [" ".join(words) for block in of_kind("sh") for words in commands(block.code)]
    told += [" ".join(words) for words in mentioned()]
    assert [start for start in ELSEWHERE if not any(command.startswith(start) for command in told)] == []
