"""Definitions of one's own: from a file into every command, and to workers, which have imported gbcd alone."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from small_runs import finished, small_study
from test_cli import gbcd
from tiny_models import saved_tiny_gpt2

import gbcd as package
from gbcd import tasks, wrong_answers
from gbcd.errors import BadInput
from gbcd.evaluation import baselines
from gbcd.evaluation.evaluate import evaluate
from gbcd.run.own_definitions import changed_since, import_definitions, read_definitions
from gbcd.run.planning import open_plan
from gbcd.run.shards import read_plan
from gbcd.run.store import Store
from gbcd.tasks import Family, Filled, Slot
from gbcd.tasks._registry import refuse_unknown_metric
from gbcd.wrong_answers import LossContext, wrong_answer
from gbcd.wrong_answers.losses import TowardsTokens
from gbcd.wrong_answers.output_targets import for_outputs

FILE = Path(__file__).parent / "own_definitions.py"


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch, forgotten: None) -> None:
    """What a test defines is not known after it."""
    for file in read_definitions([str(FILE)]):
        monkeypatch.setitem(sys.modules, file.module, sys)
        monkeypatch.delitem(sys.modules, file.module)


def first_token(context: LossContext) -> TowardsTokens:
    """Cross-entropy towards the first token of the vocabulary."""
    return TowardsTokens([(0,)] * len(context.answers))


def test_what_is_defined_in_this_process_alone_is_computed_in_this_process_alone(tmp_path: Path) -> None:
    wrong_answer("first_token")(first_token)
    asked = {"wrong_answers": ("first_token",), "prompts_per_task": 8}
    with pytest.raises(BadInput, match="'first_token' is known in this process alone: write it to a file"):
        open_plan(small_study(tmp_path, workers=1, **asked))
    assert not (tmp_path / "out").exists()
    assert finished(small_study(tmp_path, **asked)).missing == ()


def test_a_file_goes_through_every_command(tmp_path: Path) -> None:
    given, out, model = ["--definitions", str(FILE)], str(tmp_path / "out"), saved_tiny_gpt2(tmp_path / "model")
    asked = ["--task", "things", "--wrong-answer", "fixed", "--prompts", "6", "--out", out]
    asked += ["--model", model, "--workers", "0", "--device", "cpu"]
    status, _, refused = gbcd("run", *asked)
    assert status == 2
    assert "--definitions FILE.py adds your own" in refused
    assert "Who saw the table." in gbcd("list", "tasks", *given)[1]
    assert "fixed" in gbcd("show", "things", "-n", "1", "--model", model, *given)[1]
    status, said, refused = gbcd("run", *asked, *given)
    assert status == 0, refused
    assert f"gbcd evaluate {out} --definitions {FILE} " in said
    rows = package.prompts(out).collect()
    assert (set(rows["wrong_answer"]), rows.height) == ({"fixed"}, 6)
    assert rows["prompt"].str.ends_with(" saw the").all()
    (tmp_path / "out" / "commits" / "00000.json").write_text("{")
    assert gbcd("verify", out, "--repair", "--workers", "0", *given)[0] == 0
    status, said, refused = gbcd("evaluate", out, "--pairs", "4", *given)
    assert status == 0, refused
    assert "earliness" in said
    assert "has changed" not in said


def test_an_evaluation_without_the_definitions_of_its_study_is_refused_before_it_measures(tmp_path: Path) -> None:
    study = small_study(tmp_path, wrong_answers=("fixed",), definitions=(str(FILE),))
    finished(study)
    del wrong_answers._REGISTRY["fixed"]  # pyright: ignore
    with pytest.raises(BadInput, match=r"unknown wrong answer 'fixed'"):
        evaluate(study.out, 2)
    assert not (Path(study.out) / "evaluation").exists()


def test_another_file_of_that_name_is_another_study(tmp_path: Path) -> None:
    changed = tmp_path / FILE.name
    changed.write_text(FILE.read_text() + "\n# changed")
    study = small_study(tmp_path, wrong_answers=("fixed",), definitions=(str(FILE),))
    finished(study)
    del wrong_answers._REGISTRY["fixed"], baselines._BASELINES["earliness"]  # pyright: ignore
    del sys.modules[tasks.task.__module__]._tasks["things"]
    with pytest.raises(BadInput, match=r"definitions: own_definitions.py \(\w+\) -> own_definitions.py \(\w+\)"):
        finished(study.model_copy(update={"definitions": (str(changed),)}))
    assert changed_since(read_definitions([str(changed)]), read_plan(Store(study.out))) == [str(changed)]
    assert changed_since(read_definitions([str(FILE)]), read_plan(Store(study.out))) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\nraise KeyError('no')", "line 2: KeyError"),
        ("x = (\n", "line 1: SyntaxError"),
        ("import nowhere", "line 1: ModuleNotFoundError"),
        ("import sys\n\nsys.exit()", "line 3: SystemExit"),
        ("import gbcd\nx = 1", None),
    ],
)
def test_a_file_that_fails_is_refused_with_its_line(tmp_path: Path, text: str, said: str | None) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    for _ in range(2):  # the second time is no better than the first
        with pytest.raises(BadInput, match=f"mine.py, {said}" if said else "mine.py define nothing: a task is"):
            import_definitions(read_definitions([str(file)]))


def test_two_files_of_one_name_are_two_and_a_change_of_either_is_another_study(tmp_path: Path) -> None:
    files: list[Path] = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        files.append(tmp_path / name / "mine.py")
        files[-1].write_text(
            "from gbcd.wrong_answers import wrong_answer\nfrom gbcd.wrong_answers.losses import TowardsTokens\n\n\n"
            f'@wrong_answer("{name}")\ndef define(context):\n    """Token 1."""\n'
            "    return TowardsTokens([(1,)] * len(context.answers))\n"
        )
    asked = {"wrong_answers": ("one", "two"), "definitions": tuple(map(str, files))}
    planned = open_plan(small_study(tmp_path, **asked))
    assert sorted(planned.plan.sources.definitions.values()) == sorted(map(str, files))
    assert open_plan(small_study(tmp_path, **{**asked, "definitions": tuple(map(str, reversed(files)))})).resumed
    for file in files:
        before = file.read_text()
        file.write_text(before.replace("(1,)", "(2,)"))
        for name in ("one", "two"):
            del wrong_answers._REGISTRY[name]  # pyright: ignore
        for read in read_definitions(list(map(str, files))):
            sys.modules.pop(read.module, None)
        with pytest.raises(BadInput, match=r"definitions: mine.py \(\w+\), mine.py \(\w+\) -> mine.py"):
            open_plan(small_study(tmp_path, **asked))
        file.write_text(before)


FAILING = {
    "wrong answer 'mine' (FILE, line 10): AttributeError": "return context.tokens",
    "wrong answer 'mine' (FILE, line 10): SystemExit": "raise SystemExit(0)",
    "mine writes into context.unembedding, the model's own weights": (
        "context.unembedding.mul_(2)\n    return TowardsTokens(context.wrong)"
    ),
    "wrong answer 'mine' returns the tokens (1000000,); the tokenizer has 0 to 1794": (
        "return TowardsTokens([(10**6,)] * len(context.answers))"
    ),
    "wrong answer 'mine' returns 1 sets of tokens for 2 prompts": "return TowardsTokens([(1,)])",
    "wrong answer 'mine' returns the tokens (); the": "return TowardsTokens([()] * len(context.answers))",
    "wrong answer 'mine' returns NoneType; wanted is a target": "return None",
    "wrong answer 'mine' returns a distribution with negative values, or whose sum is not 1: 2.00000, 2.00000": (
        "return TowardsDistribution(2 * context.logits.softmax(1))"
    ),
    "wrong answer 'mine' returns a distribution of shape (2, 5)": (
        "return TowardsDistribution(context.logits[:, :5].softmax(1))"
    ),
    "wrong answer 'mine': its loss has 1 values for 2 prompts": (
        "return type('T', (), {'tokens': None, 'reads_all': False, '__call__': lambda s, x: x.sum()[None]})()"
    ),
    "wrong answer 'mine': its loss is [nan, nan]": (
        "return type('T', (), {'tokens': None, 'reads_all': False, '__call__': lambda s, x: x[:, 0, 0] * x.new_tensor("
        "float('nan'))})()"
    ),
}


@pytest.mark.parametrize(("said", "body"), FAILING.items())
def test_a_wrong_answer_that_fails_is_named_before_work_starts(tmp_path: Path, said: str, body: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from gbcd.wrong_answers import wrong_answer\n"
        "from gbcd.wrong_answers.losses import TowardsDistribution, TowardsTokens\n\n\n"
        f'@wrong_answer("mine")\ndef mine(context):\n    """Fails."""\n\n\n    {body}\n'
    )
    study = small_study(tmp_path, wrong_answers=("mine",), definitions=(str(file),))
    with pytest.raises(BadInput, match=re.escape(said.replace("FILE", str(file)))):
        finished(study)
    assert not (tmp_path / "out" / "plan.json").exists()


def test_a_task_that_fails_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(FILE.read_text().replace('words["b"]', 'words["c"]').replace('"things"', '"others"'))
    line = next(number for number, text in enumerate(file.read_text().splitlines(), 1) if 'words["c"]' in text)
    study = small_study(tmp_path, tasks=("others",), prompts_per_task=6, definitions=(str(file),))
    with pytest.raises(BadInput, match=rf"task 'others' \(.*mine.py, line {line}\): KeyError: 'c'"):
        finished(study)


def test_a_task_that_gives_a_prompt_twice_is_refused(tmp_path: Path) -> None:
    @tasks.task("twice", metric="logit_difference")
    def twice(vocabulary):  # pyright: ignore
        """One text, whichever word is drawn."""
        yield Family("same", [Slot("name", ["Aaron", "Alan"])], lambda words, rng: Filled("Aaron saw", (" table",)))

    study = small_study(tmp_path, tasks=("twice",), prompts_per_task=2, wrong_answers=("right_answer",))
    with pytest.raises(BadInput, match="'same' and 'same' of task 'twice' give the same prompt, 'Aaron saw'"):
        finished(study)
    assert not (tmp_path / "out").exists()


def test_a_task_of_no_known_metric_is_refused() -> None:
    with pytest.raises(BadInput, match="'own' is measured by 'logit diff'; the metrics are logit_difference, "):
        refuse_unknown_metric("own", "logit diff")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere\.py' cannot be read: No such file or directory$"):
        read_definitions([str(tmp_path / "nowhere.py")])


def test_a_name_that_is_too_long_for_a_file_is_refused() -> None:
    with pytest.raises(BadInput, match="at most 100 bytes"):
        wrong_answer("ü" * 51)(lambda *given: None)  # pyright: ignore


@pytest.mark.parametrize("name", ["../../esc", "x/y", "a.b", "", ".hidden", "a b", "a\n", "C:x"])
def test_names_that_files_cannot_have_are_refused_when_they_are_registered(name: str) -> None:
    for register in (
        tasks.task(name, "logit_difference"),
        wrong_answer(name),
        baselines.baseline(name),
        for_outputs(name),
    ):
        with pytest.raises(BadInput, match="a name is made of letters, digits"):
            register(lambda *given: None)  # pyright: ignore
