"""Benchmarks in a small setting, and how scores are held against effects."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import script
from tiny_models import random_model, small_tokenizer
from transformers import AutoModelForCausalLM

import gbcd
from gbcd.engine.engine import Engine
from gbcd.models.families import spec_of
from gbcd.models.load import prepared

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from contenders import config_of, hooked_norms, norms_only, setting  # noqa: E402
from score_tables import figures, held_out  # noqa: E402

#: Every benchmark, in a setting that takes seconds, and a word of what it prints.
SMALL = {
    "engine.py --model reference --lengths 6 --batches 4 --rounds 1 --threads 1 --clock cpu": "norms only",
    "numerics.py --prompts 1": "a.q",
    "numerics.py --cancellation": "offset  1000",
    "tasks.py --prompts 5": "`tracr_reverse`",
    "tracr_saturation.py --prompts 20": "Not used by the program",
    # TransformerLens is no dependency; where it is missing, that is what the benchmark must say
    "peers.py --layers 2 --pairs 2 --rounds 1": "TransformerLens",
    "scale.py job --prompts 20 --shard-size 10 --workers 1": '"job_to_engine"',
    "scale.py store --prompts 20 --shard-size 10": '"verify_s"',
    "scale.py resume --prompts 20 --shard-size 10": '"resume_s"',
    "faults.py --repeats 1 --only disk": "| disk full | 1 | 0 | 0 | 0 |",
}
FEW_PROMPTS = "few_prompts.py"
GPU_CHECK = (
    "gpu_check.py --device cpu --models reference --dtypes float32 --length 6 --batches 4 --rounds 1 --prompts 40 "
    "--workers 1"
)
DISCOVERY = "discovery.py --pairs 4 --block 2 --pool 64 --workers 1 --work blocks"


def printed(command: str, folder: Path) -> str:
    program, *arguments = command.split()
    status, said, errors = script(folder / "said", ROOT / "benchmarks" / program, *arguments, folder=folder).ended()
    assert status == 0, errors
    return said


@pytest.mark.parametrize("command", SMALL)
def test_benchmarks_run(command: str, tmp_path: Path) -> None:
    assert SMALL[command] in printed(command, tmp_path)


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "mistral", "qwen2", "qwen3", "gpt_neox", "opt"])
def test_every_family_can_be_timed(model_type: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(model_type))
    assert len(spec_of(model).mlps) == 12


def test_how_a_ranking_settles_is_read_from_an_evaluated_study(tmp_path: Path) -> None:
    out = str(tmp_path / "evaluated")
    gbcd.run_study(gbcd.Study(tasks=("ioi",), prompts_per_task=24, out=out, compute=gbcd.Compute(workers=0)))
    gbcd.evaluate(out, n_pairs=4, workers=0)
    told = printed(f"{FEW_PROMPTS} {out} --prompts 4 --templates 2 --draws 5 --studies 8 --seeds 1", tmp_path)
    assert told.startswith("20 prompts of")
    assert "effects of 4 others" in told
    assert "studies of    8  attribution" in told


def test_what_wants_a_gpu_is_checked_by_one_command(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in printed(GPU_CHECK, tmp_path).splitlines()]
    assert {"decoder", "batches", "speed"} <= {row.get("check") for row in rows}
    assert next(row for row in rows if row.get("name") == "norms only")["of_floor"] > 0
    assert rows[-1]["job"] == "reference"
    assert rows[-1]["prompts"] == 40


def test_the_search_for_circuits_resumes(tmp_path: Path) -> None:
    whole = printed(DISCOVERY, tmp_path)
    assert "4 of 4: " in whole
    next((tmp_path / "blocks").glob("*.npz")).unlink()
    resumed = printed(DISCOVERY, tmp_path)
    assert "1 of 1: " in resumed
    assert resumed.split("1 of 1: ")[1].splitlines()[1:] == whole.split("4 of 4: ")[1].splitlines()[1:]


def test_every_benchmark_runs_here_and_is_named_by_a_document() -> None:
    run = {command.split()[0] for command in [*SMALL, FEW_PROMPTS, GPU_CHECK, DISCOVERY]}
    scripts = {path.name: path.read_text() for path in (ROOT / "benchmarks").glob("*.py")}
    assert run == {name for name, text in scripts.items() if "__main__" in text}
    pages = "".join(path.read_text() for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
    assert [name for name in run if f"benchmarks/{name}" not in pages] == []


RNG = np.random.default_rng(0)
NODES = np.array([f"a0.h{head}" for head in range(20)] + [f"m{layer}" for layer in range(5)])
EFFECTS = np.arange(25.0)


def tables_of(**scores: np.ndarray) -> dict[str, np.ndarray]:
    templates = np.repeat([f"t{number}" for number in range(6)], 2)
    found = {"templates": templates, "nodes": NODES, "gap": np.full(12, 100.0)}
    found["effects"] = EFFECTS + RNG.normal(0, 0.1, (12, 25))
    return found | {f"margin/plain/{name}": values for name, values in scores.items()}


def row_of(rows: list[dict], statistic: str, group: str = "all") -> dict:
    (row,) = [row for row in rows if (row["statistic"], row["group"]) == (statistic, group)]
    return row


def test_the_sign_of_a_mean_is_not_its_size() -> None:
    # large values of both signs cancel in the mean, and sizes do not see it
    values = np.tile(EFFECTS, (12, 1))
    values[:, 0] = 50.0 * np.tile([1, -1], 6)
    rows = figures("counterfactual", tables_of(attribution_signed=-values), seed=0)
    assert row_of(rows, "attribution_signed")["spearman"] > 0.99
    assert row_of(rows, "attribution")["top15"] == 14
    assert row_of(rows, "attribution")["spearman"] < 0.9


def test_members_have_a_twentieth_of_the_gap() -> None:
    row = row_of(figures("counterfactual", tables_of(grad_norm=np.tile(EFFECTS, (12, 1))), 0), "grad_norm")
    assert row["n_members"] in (20, 21)
    assert (row["n_prompts"], row["n_templates"]) == (12, 6)
    assert row["spearman_ci"][0] <= row["spearman"] <= row["spearman_ci"][1] <= 1


def test_prompts_without_a_value_are_in_no_mean() -> None:
    values = np.tile(EFFECTS, (12, 1))
    values[3] = np.nan
    row = row_of(figures("counterfactual", tables_of(grad_norm=values), 0), "grad_norm", "mlps")
    assert row["spearman"] > 0.9


def test_a_score_is_chosen_on_half_of_the_templates() -> None:
    # one score knows the effects on the templates of the first half alone, the other everywhere, with noise
    first_half = np.repeat(np.arange(6) % 2 == 0, 2)[:, None]
    lucky = np.where(first_half, EFFECTS, EFFECTS[::-1])
    steady = EFFECTS + np.array([6.0, -6.0, 0.0, 3.0, 0.0] * 5)
    tables = tables_of(grad_norm=lucky, taylor=np.tile(np.abs(steady), (12, 1)), attribution=lucky)
    rows = [row for row in held_out({"counterfactual": tables}) if not row["compares"]]
    chosen = {row["half"]: row for row in rows}
    assert chosen[0]["statistic"] == "grad_norm"
    assert chosen[0]["chosen_spearman"] > 0.99
    assert chosen[0]["spearman"] < -0.9
    assert chosen[1]["statistic"] == "taylor"


def test_hooks_on_the_library_give_the_norms_that_are_timed_beside_them() -> None:
    loaded = prepared("llama", random_model("llama", 60), small_tokenizer())
    case = setting(loaded, 6, 3)
    names, found = [one.name for one in loaded.components], hooked_norms(case)
    assert {name for components in found for name in components} == {name for name in names if "norm" not in name} - {
        "embed.token", "embed.position", "embed.tied", "unembed",
    }  # fmt: skip
    wanted = norms_only(case, Engine(loaded, []))
    for components, norms in found.items():
        # the library has RMS norms in float32
        torch.testing.assert_close(norms, wanted[:, [names.index(name) for name in components]], rtol=1e-5, atol=1e-9)
