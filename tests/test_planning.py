"""From a study to its plan: what is settled, what is left out, what is refused before anything is written."""

from __future__ import annotations

import gc
import json
import os
import re
import resource
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from processes import started
from small_runs import finished, small_study
from tiny_models import small_tokenizer

from gbcd import tasks
from gbcd.cli import app
from gbcd.engine.engine import Engine
from gbcd.errors import BadInput
from gbcd.models.load import load
from gbcd.prompting.tokens import EncodedPrompt, encode
from gbcd.run import draft, settling
from gbcd.run.inputs import Inputs
from gbcd.run.norms_work import read_means
from gbcd.run.planning import Planned, open_plan
from gbcd.run.results import prompts, scan
from gbcd.run.shards import read_plan
from gbcd.run.store import Store
from gbcd.run.trial import answer_logits, solved
from gbcd.study import Study


def own_prompts(folder: Path, **changed: Any) -> Study:
    """A study of twelve prompts of one's own; `changed` fields of a line are functions of its number and the line."""
    lines: list[dict[str, Any]] = []
    for number, one in enumerate(tasks.draw("ioi", small_tokenizer(), 12, 0)):
        line = {
            "prompt": one.text, "answer": list(one.answers), "wrong_answer": list(one.wrong_answers),
            "counterfactual": one.counterfactual, "template": one.template,
        }  # fmt: skip
        made = line | {name: change(number, line) for name, change in changed.items()}
        lines.append({name: value for name, value in made.items() if value is not None})
    (folder / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    study = small_study(folder, wrong_answers=())
    fields = {"tasks": (), "prompts_per_task": None, "prompts": str(folder / "mine.jsonl")}
    return study.model_copy(update=fields)


def stored(planned: Planned) -> list[EncodedPrompt]:
    inputs = Inputs(planned.store, planned.plan)
    return [one for shard in planned.plan.shards for one in inputs.read(shard)]


def test_what_a_study_leaves_open_is_settled_once(tmp_path: Path) -> None:
    left_open = {"wrong_answers": (), "prompts_per_task": 300, "shard_size": "auto", "batch_size": "auto"}
    study = small_study(tmp_path, workers=2, **left_open)
    planned = open_plan(study)
    settled = planned.plan.study
    assert (settled.wrong_answers, settled.compute.batch_size, settled.compute.device) == (("margin",), 32, "cpu")
    assert settled.compute.shard_size == 32  # ten batches, for at least four shards a worker
    assert read_plan(planned.store) == planned.plan
    assert "auto" not in json.loads((tmp_path / "out" / "plan.json").read_text())["study"]["compute"].values()
    again = open_plan(small_study(tmp_path, workers=64, **left_open))
    assert again.resumed
    assert again.plan == planned.plan
    with pytest.raises(BadInput, match=r"compute\.batch_size: 32 -> 16"):
        open_plan(small_study(tmp_path, **left_open | {"batch_size": 16}))


def test_without_wrong_answers_of_their_own_prompts_are_pulled_to_inverse_logits(tmp_path: Path) -> None:
    study = own_prompts(tmp_path, wrong_answer=lambda number, line: line["wrong_answer"] if number else None)
    assert open_plan(study).plan.study.wrong_answers == ("inverse_logits",)


def test_batches_have_like_lengths_and_the_sample_is_the_shuffled_order(tmp_path: Path) -> None:
    study = small_study(tmp_path, tasks=("docstring", "ioi"), prompts_per_task=70)
    planned = open_plan(study)
    inputs, plan = Inputs(planned.store, planned.plan), planned.plan
    for task in plan.tasks:
        shards = [shard for shard in plan.shards if shard.task == task]
        lengths = [len(one.ids) for shard in shards for one in inputs.read(shard)]
        assert lengths == sorted(lengths)
        whole = inputs.sample(task, 70)
        assert inputs.sample(task, 9) == whole[:9]
        assert [len(one.ids) for one in whole] != lengths
    file = pq.ParquetFile(f"{study.out}/{plan.inputs.path}")
    assert file.num_row_groups == len(plan.shards)
    assert plan.batches(plan.shards[0]) == [slice(0, 4), slice(4, 8)]


def test_rows_do_not_depend_on_the_size_of_shards(tmp_path: Path) -> None:
    found: list[list[EncodedPrompt]] = []
    for size in (4, 8, 40):
        found.append(stored(open_plan(small_study(tmp_path, out=f"{tmp_path}/{size}", shard_size=size))))
    assert found[0] == found[1] == found[2]


def test_the_same_study_by_other_paths_is_the_same_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = own_prompts(tmp_path)
    open_plan(study)
    monkeypatch.chdir(tmp_path)
    near = study.model_copy(update={"prompts": "mine.jsonl", "model": "model", "out": "out"})
    planned = open_plan(near)
    assert planned.resumed
    assert planned.plan.study.model == str(tmp_path / "model")
    os.rename(tmp_path / "model", tmp_path / "moved")
    assert open_plan(near.model_copy(update={"model": "moved"})).resumed


def test_a_counterfactual_of_another_length_is_named_and_a_partner_takes_its_place(tmp_path: Path) -> None:
    longer = {
        "counterfactual": lambda number, line: line["counterfactual"] + " the" if number < 2 else line["counterfactual"]
    }
    study = own_prompts(tmp_path, template=lambda number, line: "one", **longer)
    planned = open_plan(study)
    by_number = {one.prompt.id: one for one in stored(planned)}
    own = [len(by_number[f"prompts/{number:06}"].ids) for number in (1, 2)]
    assert (
        "prompts: 2 counterfactuals not used, because their length is not that of their prompt: "
        f"prompts/000001 ({own[0] + 1} tokens, prompt {own[0]}), prompts/000002 ({own[1] + 1} tokens, prompt {own[1]})"
    ) in planned.notes
    references = [by_number[name].reference for name in sorted(by_number)]
    assert references[2:] == ["counterfactual"] * 10
    assert set(references[:2]) <= {"partner", "none"}
    asked = study.model_copy(update={"reference": "counterfactual", "out": f"{tmp_path}/other"})
    with pytest.raises(BadInput, match='2 prompts without a counterfactual of equal length, which reference = "c'):
        open_plan(asked)
    assert not (tmp_path / "other").exists()


def test_partners_alone_are_used_where_they_are_asked_for(tmp_path: Path) -> None:
    planned = open_plan(small_study(tmp_path, reference="partner"))
    found = stored(planned)
    assert {one.reference for one in found} <= {"partner", "none"}
    alone = [one.prompt.id for one in found if one.reference == "none"]
    assert any(f"{len(alone)} prompts have neither counterfactual nor partner" in note for note in planned.notes)
    assert {one.reference for one in stored(open_plan(small_study(tmp_path, out=f"{tmp_path}/b")))} == {
        "counterfactual"
    }


def test_prompts_that_the_model_does_not_solve_are_left_out_counted_and_named(tmp_path: Path) -> None:
    study = own_prompts(tmp_path).model_copy(update={"only_solved": True})
    loaded = load(study.model)
    above: dict[str, bool] = {}
    for one in stored(open_plan(own_prompts(tmp_path).model_copy(update={"out": f"{tmp_path}/all"}))):
        logits = loaded.model(torch.tensor([one.ids])).logits[0, -1]
        above[one.prompt.id] = bool(logits[one.answer_ids[0]] > logits[one.wrong_ids[0]])
    n_good = sum(above.values())
    assert 0 < n_good < 12
    planned = open_plan(study)
    assert {one.prompt.id for one in stored(planned)} == {name for name, good in above.items() if good}
    assert f"prompts: {12 - n_good} of 12 prompts left out, because the model does not solve them: " in planned.notes[0]


def test_a_prompt_is_solved_if_its_twin_is(tmp_path: Path) -> None:
    """A random model prefers one name whatever the prompt, so it is right in one of prompt and twin."""
    loaded = load(small_study(tmp_path).model)
    every = encode(tasks.draw("ioi", loaded.tokenizer, 40, 0), loaded.tokenizer)
    alone = [replace(one, twin_ids=None) for one in every]
    swapped = [replace(one, answer_ids=one.wrong_ids, wrong_ids=one.answer_ids) for one in alone]
    assert [not good for good in solved(alone, loaded)] == solved(swapped, loaded)
    assert any(solved(alone, loaded))
    assert not any(solved(every, loaded))
    agreeing = [replace(one, twin_ids=twin.ids) for one, twin in zip(alone, every, strict=True)]
    assert not any(solved(agreeing, loaded))
    bare = [replace(one, wrong_ids=(), answer_ids=(int(answer_logits(loaded, [one.ids]).argmax()),)) for one in alone]
    assert all(solved(bare, loaded))


def test_a_model_that_solves_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gbcd.run.draft.solved", lambda encoded, loaded: [False] * len(encoded))
    with pytest.raises(BadInput, match="ioi: the model solves none of 40 prompts"):
        open_plan(small_study(tmp_path, only_solved=True))


def test_tasks_of_several_models_are_several_studies(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"ioi on .*; tracr_reverse on tracr_reverse\. Give each a study of its own"):
        open_plan(small_study(tmp_path, tasks=("ioi", "tracr_reverse")))
    alone = small_study(tmp_path, tasks=("tracr_reverse",), wrong_answers=())
    with pytest.raises(BadInput, match="is used by no task, since they bring their own: tracr_reverse on tracr_rev"):
        open_plan(alone)
    fields = alone.model_dump(exclude={"model"})
    planned = open_plan(Study.model_validate(fields))
    assert (planned.plan.study.model, planned.plan.study.wrong_answers) == ("tracr_reverse", ("inverse_logits",))


def with_small_files(words: list[str]) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    app(words)


@pytest.mark.parametrize("source", ["task", "file"])
def test_a_full_temporary_folder_is_said_plainly(tmp_path: Path, source: str) -> None:
    """No file may have more than 20,000 bytes, and the prompts take more."""
    study = small_study(tmp_path)
    (tmp_path / "many.jsonl").write_text(Path(own_prompts(tmp_path).prompts or "").read_text() * 200)
    prompts = {"task": ["--task", "ioi", "--prompts", "2000"], "file": ["--prompts", str(tmp_path / "many.jsonl")]}
    words = ["plan", *prompts[source], "--model", study.model, "--out", study.out]
    status, _, refused = started(tmp_path / "said", with_small_files, words).ended()
    assert status == 2, refused
    assert re.fullmatch(r"error: prompts .*TMPDIR.*\n", refused)
    assert not Path(study.out).exists()


def test_another_study_beside_the_first_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two commands plan at once: who comes second resumes, and leaves no second file of prompts."""
    study = small_study(tmp_path, shard_size="auto", batch_size="auto")
    first = open_plan(study)
    monkeypatch.setattr(Store, "exists", lambda store, path: False)
    monkeypatch.setattr(settling, "shard_size", lambda *given: 1024)  # by time, so it may differ
    second = open_plan(study)
    assert second.resumed
    assert second.plan == first.plan
    assert len(list((tmp_path / "out" / "inputs").iterdir())) == 1


def test_shards_of_the_sample_together_give_the_means_of_the_whole(tmp_path: Path) -> None:
    asked = {"tasks": ("greater_than",), "wrong_answers": ("inverse_logits",), "prompts_per_task": 160}
    study = small_study(tmp_path, centering="template", **asked)
    planned = open_plan(study)
    in_shards = [group for shard in planned.plan.means for group in shard.groups]
    assert len(planned.plan.means) > 1
    assert len(in_shards) == len(set(in_shards))
    finished(study)
    found, _ = read_means(planned.store, planned.plan, "greater_than")
    loaded = load(study.model, device="cpu")
    sample = Inputs(planned.store, planned.plan).sample("greater_than", 160)
    (whole,) = Engine(loaded, []).calibrate(sample, "template").tasks.values()
    means = found.tasks["greater_than"]
    assert means.groups == whole.groups
    assert means.counts().tolist() == whole.counts().tolist()
    assert set(means.means) == set(whole.means)
    for name, mean in whole.means.items():
        torch.testing.assert_close(means.means[name], mean, atol=1e-5, rtol=1e-5)


def test_a_study_centred_by_template_is_the_engine_so_centred(tmp_path: Path) -> None:
    asked = {"tasks": ("greater_than",), "wrong_answers": ("inverse_logits",), "prompts_per_task": 80}
    study = small_study(tmp_path, centering="template", calibration_prompts=48, **asked)
    planned = open_plan(study)
    finished(study)
    calibration, _ = read_means(planned.store, planned.plan, "greater_than")
    rows = prompts(study.out).collect()
    assert calibration.centering == "template"
    assert set(calibration.tasks["greater_than"].groups) == set(rows["template"])
    rare = Counter(rows.filter(rows["status"] == "uncalibrated")["template"])
    assert 0 < rare.total() < len(rows)
    assert f"{rare.total()} of 80 prompts" in planned.notes[-1]
    norms = scan(study.out).filter(pl.col("component") == "m1.out").collect()
    assert norms["centered_grad_norm"].null_count() == rare.total()
    by_position = small_study(tmp_path, out=f"{tmp_path}/other", **asked)
    finished(by_position)
    others = scan(by_position.out).filter(pl.col("component") == "m1.out").collect()
    assert norms["grad_norm"].equals(others["grad_norm"])
    assert not norms["centered_grad_norm"].equals(others["centered_grad_norm"])


def test_prompts_are_centred_by_template_where_nearly_all_of_them_can_be(tmp_path: Path) -> None:
    asked = {"tasks": ("greater_than",), "wrong_answers": ("inverse_logits",)}
    few = open_plan(small_study(tmp_path, prompts_per_task=40, out=f"{tmp_path}/few", **asked))
    many = open_plan(small_study(tmp_path, prompts_per_task=600, out=f"{tmp_path}/many", **asked))
    assert (few.plan.study.centering, many.plan.study.centering) == ("position", "template")
    resumed = open_plan(small_study(tmp_path, prompts_per_task=600, out=f"{tmp_path}/many", **asked))
    assert resumed.resumed


def test_the_models_proof_is_in_the_plan_and_a_model_without_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    planned = open_plan(small_study(tmp_path))
    proof = json.loads((Path(planned.store.location) / "plan.json").read_text())["self_check"]
    assert proof["logits"] < 1e-4
    assert proof["norms"] < 1e-4
    assert read_plan(planned.store).self_check == planned.plan.self_check

    def differs(loaded: object) -> None:
        raise BadInput("the decoder of gbcd does not run it as the library does")

    monkeypatch.setattr("gbcd.run.planning.self_check", differs)
    open_plan(small_study(tmp_path))  # a plan that stands was proven when it was made
    other = small_study(tmp_path, out=str(tmp_path / "other"))
    with pytest.raises(BadInput, match="does not run it as the library does"):
        open_plan(other)
    assert not (tmp_path / "other").exists()


def test_python_looks_for_cycles_as_before_when_prompts_are_drafted(tmp_path: Path) -> None:
    before, seen = gc.get_threshold(), list[int]()
    study = small_study(tmp_path)
    open_plan(study, lambda task, n_prompts, done: seen.append(gc.get_threshold()[0]))
    assert set(seen) == {draft.COLLECTED}
    assert gc.get_threshold() == before


def test_readers_tell_a_plan_without_commits_from_what_is_no_results_folder(tmp_path: Path) -> None:
    planned = open_plan(small_study(tmp_path))
    with pytest.raises(BadInput, match=r"nothing is committed in .* yet"):
        scan(planned.plan.study.out)
    with pytest.raises(BadInput, match=r"nowhere' holds no plan.json: it is not a results folder"):
        prompts(str(tmp_path / "nowhere"))
