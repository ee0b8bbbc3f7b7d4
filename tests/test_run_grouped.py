"""From a directory with a Qwen2 in bfloat16 to results, evaluation and circuit: groups are nodes of their own."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
import torch
from small_runs import finished, small_study
from tiny_models import random_model, small_tokenizer

import gbcd
from gbcd.evaluation.evaluate import evaluate

#: Rows of the table beyond the tokenizer's words: checkpoints of Qwen2 pad theirs.
SPARE = 5


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("qwen2")
    model = random_model("qwen2", len(small_tokenizer()) + SPARE, dtype=torch.bfloat16, num_key_value_heads=2)
    model.save_pretrained(folder / "model")
    small_tokenizer().save_pretrained(folder / "model")
    asked = {"prompts_per_task": 16, "wrong_answers": ("inverse_logits", "least_likely")}
    study = small_study(folder, dtype="bfloat16", **asked)
    assert finished(study).missing == ()
    return study.out


def test_groups_are_measured_and_only_what_writes_to_the_residual_stream_is_ranked(out: str) -> None:
    rows = gbcd.scan(out).collect()
    assert rows["grad_norm"].is_finite().all()
    assert set(rows.filter(pl.col("node") == "a1.g0")["part"]) == {"k", "v"}
    assert set(rows.filter(pl.col("node") == "a1.h0")["part"]) == {"q", "o"}
    nodes = gbcd.summary(out).filter(level="node", wrong_answer="inverse_logits").collect()
    kinds = nodes.filter(pl.col("rank").is_not_null()).group_by("part").len()
    assert dict(kinds.iter_rows()) == {"head": 12, "mlp": 3}
    group = nodes.row(by_predicate=pl.col("component") == "a1.g0", named=True)
    assert (group["head"], group["part"], group["rank"]) == (None, "group", None)
    assert group["score"] > 0
    parts = gbcd.summary(out).filter(level="part", wrong_answer="inverse_logits").drop_nulls("rank").collect()
    assert dict(parts.group_by("part").len().iter_rows()) == {
        **dict.fromkeys("qo", 12), **dict.fromkeys("kv", 6), **dict.fromkeys(("gate", "up", "down"), 3)
    }  # fmt: skip


def test_the_circuit_file_has_heads_and_mlps(out: str) -> None:
    circuit = json.loads((Path(out) / "circuit.json").read_text())
    assert circuit["cfg"] == {"n_layers": 3, "n_heads": 4, "parallel_attn_mlp": False, "d_model": 24}
    assert sum(name[0] in "am" for name in circuit["nodes"]) == 15
    assert all("score" in node for name, node in circuit["nodes"].items() if name[0] in "am")


def test_evaluation_measures_what_is_ranked(out: str) -> None:
    """Heads and MLPs; of parts also keys and values of groups."""
    for level, kinds in (("node", {"head", "mlp"}), ("part", {"q", "k", "v", "o", "gate", "up", "down"})):
        effects = evaluate(out, n_pairs=4, level=level).effects.filter(pl.col("method") == "resample")
        assert set(effects["part"]) == kinds
        assert effects["value"].is_finite().all()
    assert effects.filter(pl.col("component").str.contains(r"\.g\d\.v"))["value"].abs().max() > 0
