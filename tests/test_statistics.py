"""Studies that leave statistics out: what they compute is as in a complete one, and the rest costs nothing."""

from __future__ import annotations

import io
from pathlib import Path

import polars as pl
import pytest
from oracle_values import engine_values, exact_calibration, loaded_model, mixed_prompts
from polars.testing import assert_frame_equal
from rich.console import Console
from small_runs import finished, small_study, tables

from gbcd.analysis.reduce import reduce
from gbcd.engine.engine import Engine
from gbcd.engine.oracle import Oracle
from gbcd.engine.references import MeanReference, RunReference
from gbcd.engine.tables import STATISTICS
from gbcd.errors import BadInput
from gbcd.pipeline import run_study
from gbcd.run.verification import verify


@pytest.mark.parametrize(
    ("names", "compares", "centres"),
    [
        (("grad_norm",), False, False),
        (("grad_norm", "taylor", "centered_grad_norm"), False, True),
        (("contrast_norm",), True, False),
        (("attribution", "mean_attribution"), True, True),
    ],
)
def test_the_engine_computes_what_is_asked_for(
    names: tuple[str, ...], compares: bool, centres: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, prompts = loaded_model("llama"), mixed_prompts((6, 4))
    calibration = exact_calibration(Oracle(loaded), prompts, "position")
    whole = engine_values(Engine(loaded, ["foil"], calibration), prompts).statistics
    used: set[str] = set()
    for kind, method in (
        (RunReference, "__init__"),
        (MeanReference, "difference"),
        (MeanReference, "output_difference"),
    ):
        original = getattr(kind, method)
        monkeypatch.setattr(kind, method, lambda *given, o=original, n=kind.__name__: (used.add(n), o(*given))[1])
    found = engine_values(Engine(loaded, ["foil"], calibration, statistics=names), prompts).statistics
    assert found.keys() == {*names}
    for name in names:
        assert found[name].equal(whole[name]), name
    assert used == ({"RunReference"} if compares else set()) | ({"MeanReference"} if centres else set())


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pl.DataFrame]:
    study = small_study(tmp_path_factory.mktemp("complete"))
    finished(study)
    return tables(study.out)


@pytest.mark.parametrize(
    # too few prompts of so small a study have a centred norm for it to be the score
    ("asked", "stored", "score"),
    [
        (("attribution",), ("grad_norm", "attribution"), "attribution"),
        (("taylor", "grad_norm"), ("grad_norm", "taylor"), "grad_norm"),
        (("centered_grad_norm",), ("grad_norm", "centered_grad_norm"), "grad_norm"),
    ],
)
def test_a_study_stores_what_it_names(
    tmp_path: Path, complete: dict[str, pl.DataFrame], asked: tuple[str, ...], stored: tuple[str, ...], score: str
) -> None:
    run = finished(small_study(tmp_path, statistics=asked))
    assert run.plan.study.statistics == stored
    assert bool(run.plan.means) == ("centered_grad_norm" in stored)
    found, left_out = tables(run.plan.study.out), [name for name in STATISTICS if name not in stored]
    assert_frame_equal(found["scan"].drop(left_out), complete["scan"].drop(left_out))
    assert all(found["scan"][name].null_count() == len(found["scan"]) for name in left_out)
    # without a mean, a prompt lacks nothing where nothing is centred
    as_it_was = found["prompts"].with_columns(complete["prompts"]["status"])
    assert_frame_equal(as_it_was, complete["prompts"])
    assert "uncalibrated" in complete["prompts"]["status"]
    assert ("uncalibrated" in found["prompts"]["status"]) == ("centered_grad_norm" in stored)
    assert run.summary is not None
    assert run.summary["score_name"].unique().to_list() == [score]
    with pytest.raises(BadInput, match=f"the score {left_out[-1]} needs .* which the study leaves out"):
        reduce(run.plan.study.out, left_out[-1])
    assert verify(run.plan.study.out).is_sound


@pytest.mark.parametrize(
    ("fields", "score", "said"),
    [
        ({"statistics": ("attributions",)}, None, "unknown statistic 'attributions'; did you mean .*attribution"),
        ({"statistics": ("taylor",)}, "attribution", "the score attribution needs the statistic attribution"),
        ({"statistics": ("taylor",)}, "writing_norm", "writing_norm needs the statistic centered_grad_norm"),
        ({"statistics": ("taylor",), "ig_steps": 2}, None, "ig_steps is of the statistic attribution"),
    ],
)
def test_what_is_left_out_cannot_be_asked_for(
    tmp_path: Path, fields: dict[str, object], score: str | None, said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        run_study(small_study(tmp_path, **fields), Console(file=io.StringIO()), score=score)
    assert not (tmp_path / "out").exists()
