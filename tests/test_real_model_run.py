"""The whole way on a real model: two Ray workers, one of them killed, an evaluation, the report in a browser."""

from __future__ import annotations

import io
from pathlib import Path

import polars as pl
import pytest
from browsers import opened
from fault_engines import killed_by
from playwright.sync_api import Browser
from processes import started
from real_model import smollm2
from rich.console import Console
from small_runs import finished, tables

from gbcd.evaluation.evaluate import evaluate
from gbcd.report.page import write_report
from gbcd.run.results import components
from gbcd.run.verification import verify
from gbcd.study import Compute, Study

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning"), pytest.mark.browser]


def run_again_and_evaluate(alone: Study, out: str) -> None:
    """As a user does, without the checks of shapes, which take their time on a real model."""
    finished(alone)
    evaluate(out, 2, top=3, console=Console(file=io.StringIO()))
    write_report(out)


@pytest.mark.usefixtures("ray_here")
def test_from_a_killed_worker_to_a_page(tmp_path: Path, browser: Browser) -> None:
    compute = Compute(workers=2, device="cpu", batch_size=4, shard_size=4)
    out = str(tmp_path / "out")
    study = Study(model=smollm2(), tasks=("ioi",), prompts_per_task=8, edges=True, out=out, compute=compute)
    run = finished(study, killed_by("ioi/000007", marker=str(tmp_path / "died")))
    assert (tmp_path / "died").exists()
    assert run.missing == ()
    assert verify(out).is_sound

    here = compute.model_copy(update={"workers": 0})
    alone = study.model_copy(update={"out": str(tmp_path / "alone"), "compute": here})
    status, _, said = started(tmp_path / "said", run_again_and_evaluate, alone, out).ended()
    assert status == 0, said
    of_two, of_one = tables(out), tables(alone.out)
    assert of_two["prompts"].equals(of_one["prompts"])
    assert of_two["scan"].equals(of_one["scan"])
    assert of_two["scan"].height == 8 * components(out).collect().height

    resampled = pl.read_parquet(f"{out}/effects.parquet").filter(method="resample")
    assert resampled["value"].abs().max() > 0.1 * resampled["gap"][0]
    page, said = opened(browser, Path(out) / "report.html")
    assert said == []
    assert "smollm2-135m" in page.title()
