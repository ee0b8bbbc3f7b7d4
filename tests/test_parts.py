"""A study of several models: one command, a results folder for each, read as one."""

from __future__ import annotations

import io
import re
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console
from small_runs import same, small_study, tables
from test_cli import gbcd
from tiny_models import saved_tiny_gpt2

import gbcd as package
from gbcd import study as studies
from gbcd.errors import BadInput
from gbcd.pipeline import Run, run_study
from gbcd.run.parts import folders
from gbcd.run.splitting import split
from gbcd.study import Compute, Study
from gbcd.wrong_answers import names

ALL_TASKS = ("ioi", "greater_than", "docstring", "induction", "tracr_xproportion", "tracr_reverse")
WITHOUT_MODEL = tuple(name for name in names() if name != "semantic")
N_PROMPTS = 16
UNDEFINED = {
    "tracr_xproportion": {"logit_difference", "most_dissimilar", "least_likely"},
    "tracr_reverse": {"most_dissimilar"},
}


def mixed(folder: Path, workers: int = 0, **fields: object) -> Study:
    study = small_study(folder, workers)
    changed = {"tasks": ALL_TASKS, "prompts_per_task": N_PROMPTS, "wrong_answers": WITHOUT_MODEL} | fields
    return Study.model_validate(study.model_dump() | changed | {"compute": Compute(workers=workers, device="cpu")})


def run(study: Study) -> tuple[tuple[Run, ...], str]:
    said = io.StringIO()
    return run_study(study, Console(file=said, width=200)), said.getvalue()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A finished study of all six tasks."""
    study = mixed(tmp_path_factory.mktemp("mixed"))
    runs, said = run(study)
    assert [one.missing for one in runs] == [(), (), ()]
    assert f"tracr_reverse: {N_PROMPTS} prompts in 1 shard, planned" in said
    assert f"{6 * N_PROMPTS} of {6 * N_PROMPTS} prompts, 6/6 shards" in said
    return study


def test_every_task_has_every_definition_that_means_something_for_it(reference: Study) -> None:
    rows = package.prompts(reference.out).collect()
    assert rows.height == N_PROMPTS * sum(len(set(WITHOUT_MODEL) - UNDEFINED.get(task, set())) for task in ALL_TASKS)
    for task in ALL_TASKS:
        of_task = rows.filter(task=task)
        assert set(of_task["wrong_answer"]) == set(WITHOUT_MODEL) - UNDEFINED.get(task, set())
        assert of_task["prompt_id"].n_unique() == N_PROMPTS


def test_readers_see_one_study_and_parts_of_their_own_model_only(reference: Study) -> None:
    scanned, summed = package.scan(reference.out).collect(), package.summary(reference.out).collect()
    several = folders(reference.out)
    assert [Path(folder).name for folder in several] == ["model", "tracr_xproportion", "tracr_reverse"]
    for folder, tasks in zip(several, (ALL_TASKS[:4], ALL_TASKS[4:5], ALL_TASKS[5:]), strict=True):
        parts = package.components(folder).collect()["component"].to_list()
        for table in (scanned, summed.filter(level="part")):
            of_model = table.filter(pl.col("task").is_in(tasks))
            assert of_model["component"].unique(maintain_order=True).to_list() == parts
    assert set(scanned["task"]) == set(summed["task"]) == set(ALL_TASKS)
    with pytest.raises(BadInput, match=r"holds several models; ask for the components of one: .*tracr_reverse"):
        package.components(reference.out)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A finished study of two models."""
    study = mixed(tmp_path_factory.mktemp("small"), tasks=("ioi", "tracr_reverse"), wrong_answers=("foil",))
    run(study)
    return study


def test_each_folder_is_the_study_of_its_model_alone(small: Study, tmp_path: Path) -> None:
    alone = mixed(tmp_path, model="tracr_reverse", tasks=("tracr_reverse",), wrong_answers=("foil",))
    run(alone)
    assert folders(alone.out) == [alone.out]
    assert same(tables(alone.out), tables(folders(small.out)[1]))


def test_workers_change_no_row_and_the_same_call_goes_on(small: Study, tmp_path: Path) -> None:
    study = small.model_copy(update={"out": str(tmp_path / "out"), "compute": Compute(workers=1, device="cpu")})
    run(study)
    before = tables(study.out)
    assert same(before, tables(small.out))
    next((tmp_path / "out" / "tracr_reverse" / "commits").iterdir()).unlink()
    runs, said = run(study.model_copy(update={"compute": small.compute}))
    assert [one.found for one in runs] == [1, 0]
    assert "tracr_reverse: 16 prompts in 1 shard, resuming, 0 of them committed before" in said
    assert same(before, tables(study.out))


def test_the_commands_speak_of_every_model(small: Study) -> None:
    assert gbcd("status", small.out)[1].count(f"{N_PROMPTS} of {N_PROMPTS} (100%)") == 2
    status, said, _ = gbcd("verify", small.out)
    assert (status, said.count("each exactly once")) == (0, 2)
    assert gbcd("reduce", small.out)[1].count("summary.parquet") == 2
    (Path(folders(small.out)[1]) / "components.parquet").write_bytes(b"")
    assert gbcd("verify", small.out)[0] == 3
    assert gbcd("verify", small.out, "--repair", "--workers", "0")[0] == 0


def test_the_command_names_what_it_left_out_and_what_there_are_no_more_of(tmp_path: Path) -> None:
    out, flags = str(tmp_path / "out"), ["--workers", "0", "--device", "cpu", "--prompts", "364"]
    definitions = ["--wrong-answer", "least_likely", "--wrong-answer", "foil"]
    tasks = ["--task", "tracr_xproportion", "--task", "tracr_reverse"]
    status, said, _ = gbcd("run", *tasks, *flags, *definitions, "--out", out)
    assert status == 0
    assert "Left out     for tracr_xproportion: least_likely is not defined for answers of the kind number" in said
    assert "Fewer        363 prompts of tracr_reverse, which are all inputs of its model" in said
    assert "727 of 727 prompts, in 4 of 4 shards" in said


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tasks": ("tracr_reverse",)}, "is used by no task, since they bring their own: tracr_reverse on tracr_rev"),
        ({"wrong_answers": ("most_dissimilar",)}, "none of the wrong answers is defined for tracr_xproportion: most_"),
        ({"tasks": ALL_TASKS[4:], "model": "tracr_reverse", "wrong_answers": ("foil", "most_dissimilar")},
         "most_dissimilar is defined for no task of this study: "),
        ({"prompts_per_task": 10**9}, "distinct prompts of task 'ioi'"),
    ],
)  # fmt: skip
def test_bad_input_leaves_nothing_behind(tmp_path: Path, fields: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput, match=re.escape(said)):
        run(mixed(tmp_path, **fields))
    assert not (tmp_path / "out").exists()


def test_another_study_is_refused_whichever_way_round(small: Study, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"holds another study, of ioi on .*asked for: ioi, docstring on"):
        run(small.model_copy(update={"tasks": ("ioi", "docstring", "tracr_reverse")}))
    with pytest.raises(BadInput, match="holds another study, of ioi"):
        run(small.model_copy(update={"tasks": ("ioi",)}))
    with pytest.raises(BadInput, match=r"study\.seed: 0 -> 1"):
        run(small.model_copy(update={"seed": 1}))
    run(mixed(tmp_path, tasks=("ioi",), wrong_answers=("foil",)))
    with pytest.raises(BadInput, match="holds another study, of one model"):
        run(mixed(tmp_path))
    (tmp_path / "out" / "parts.json").write_text("{")
    with pytest.raises(BadInput, match=r"parts\.json was not written by this version"):
        package.scan(str(tmp_path / "out"))


def test_folders_of_models_are_plain_names_and_differ(tmp_path: Path) -> None:
    for model, expected in (
        (str(tmp_path / "tracr_reverse"), "tracr_reverse"),
        (str(tmp_path / ".." / "a-b.c"), "a_b_c"),
    ):
        saved_tiny_gpt2(Path(model))
        parts = split(Study(model=model, tasks=("ioi", "tracr_reverse"), out="x"))
        assert parts[0].folder == expected
        assert len({part.folder for part in parts}) == 2


def test_the_study_of_all_tasks_is_what_it_says() -> None:
    study = studies.read_study(Path(__file__).parents[1] / "jobs" / "studies" / "all_tasks.toml")
    assert set(study.tasks) == set(ALL_TASKS)
    assert set(study.wrong_answers) == set(names())
    parts = split(study)
    assert [part.folder for part in parts] == ["reference", "tracr_xproportion", "tracr_reverse"]
    assert {part.model: set(part.undefined) for part in parts[1:]} == {
        model: {*undefined, "semantic"} for model, undefined in UNDEFINED.items()
    }
    assert parts[0].undefined == {}
