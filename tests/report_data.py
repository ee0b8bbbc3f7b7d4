"""Made-up results of any size, for the tests of the report; and a small study that was run, evaluated and reported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from small_runs import finished
from tiny_models import saved_tiny_gpt2, small_tokenizer

from gbcd import tasks
from gbcd.analysis.nodes import Key
from gbcd.evaluation.evaluate import evaluate
from gbcd.report.data import EXAMPLES, NORMS, Measured, ReportData
from gbcd.report.page import write_report
from gbcd.study import Compute, Study

HOSTILE = "</script><img src=x onerror=document.title='taken'><b>bold</b>"

GROUPS = (Key("ioi", "margin"), Key("ioi", "inverse_logits"), Key("induction", "margin"))

GAP = 2.0

N_PROMPTS = 60


def made_up(
    layers: int = 3, heads: int = 4, groups: Sequence[Key] = GROUPS, seed: int = 0, shared: int = 0
) -> ReportData:
    """Results of a model with `layers` layers of `heads` heads, which share keys and values in `shared` groups."""
    rng = np.random.default_rng(seed)
    places = [*(f"h{head}" for head in range(heads)), *(f"g{group}" for group in range(shared))]
    nodes = [name for layer in range(layers) for name in (*(f"a{layer}.{place}" for place in places), f"m{layer}")]
    values = {group: rng.standard_t(2, len(nodes)) for group in groups}
    summary = pl.concat([_summary(group, nodes, values[group], rng) for group in groups])
    names = list(dict.fromkeys(group.task for group in groups))
    examples = {
        "prompt": "When Mary and John went to the store, John gave a drink to", "answer": " Mary", "n": N_PROMPTS,
        "wrong_answer": "margin", "wrong_token": " John",
        "correct": 0.6, "above_wrong": 0.95, "partner": 0.0,
    }  # fmt: skip
    return ReportData(
        location="results/ioi",
        model="models/small",
        source=None,
        computed=[("model", "models/small, weights 0123456789ab"), ("results", "results/ioi")],
        summary=summary,
        examples=pl.DataFrame([{"task": task, **examples} for task in names], schema=EXAMPLES),
        statuses={"ok": N_PROMPTS},
        edges={group: edges([name for name in nodes if ".g" not in name], rng) for group in groups},
        samples={group: _sample(nodes, values[group], rng) for group in groups},
        extremes=extremes(groups),
    )


def evaluated(data: ReportData, effects: dict[str, float] | None = None) -> ReportData:
    """The same with an evaluation; `effects` are shares of the gap, by default near the attributions."""
    rows: list[dict[str, Any]] = []
    figures: list[dict[str, Any]] = []
    sizes: list[dict[str, Any]] = []
    for task, group in {group.key.task: group for group in reversed(data.groups)}.items():
        nodes = group.nodes
        largest = nodes["score"].max()
        for name, value in nodes.select("component", "attribution_signed_mean").iter_rows():
            share = 0.9 * value / largest if effects is None else effects.get(name, 0.0)
            bounds = {"ci_low": (share - 0.05) * GAP, "ci_high": (share + 0.05) * GAP}
            for method in ("resample", "mean"):
                common = {"task": task, "method": method, "component": name, "node": name, "gap": GAP, "n_pairs": 32}
                rows.append({**common, "value": share * GAP, **bounds, "cost": 3.0})
    for group in data.groups:
        for method, value in (("attribution", 0.9), ("writing_norm", 0.5), ("random", 0.0)):
            keys = {"task": group.key.task, "method": method, "cost": 3.0, "n_pairs": 32}
            keys["wrong_answer"] = None if method == "random" else group.key.wrong_answer
            bounds = {"ci_low": value - 0.1, "ci_high": value + 0.1}
            for figure, truth in (("spearman", "resample"), ("auroc", "resample"), ("cpr", None), ("cmd", None)):
                about = {"truth": truth, "group": "all", "figure": figure, "value": value}
                figures.append({**keys, **about, **bounds})
            for size in (0.0, 0.1, 0.2, 0.5, 1.0):
                kept = {"size": size, "n_components": round(size * group.nodes.height), "faithfulness": size**0.5}
                sizes.append({**keys, **kept, **bounds})
    edges = [{**row, "ranking": "size", "n_edges": 10 * row["n_components"]} for row in sizes]
    edges = [{name: value for name, value in row.items() if name != "n_components"} for row in edges]
    place = {task: number for number, task in enumerate(dict.fromkeys(group.key.task for group in data.groups), 1)}
    edges = [{**row, "faithfulness": row["faithfulness"] ** place[row["task"]]} for row in edges]  # other in each task
    tables = (pl.from_dicts(table, infer_schema_length=None) for table in (figures, rows, sizes, edges))
    return replace(data, measured=Measured(*tables))


def without_attributions(data: ReportData, group: Key) -> ReportData:
    """The same where no prompt of `group` has a reference, so that the norm ranks."""
    is_group = (pl.col("task") == group.task) & (pl.col("wrong_answer") == group.wrong_answer)
    columns = [name for name in data.summary.columns if name.startswith(("attribution_", "mean_attribution_"))]
    changed = {name: pl.when(~is_group).then(name) for name in columns}
    changed["attribution_n"] = pl.when(~is_group).then("attribution_n").otherwise(0)
    norm = pl.col("writing_norm_mean")
    rank = norm.rank("ordinal", descending=True).over("task", "wrong_answer", "level")
    ranked = {
        "score": pl.when(is_group).then(norm).otherwise("score"),
        "score_name": pl.when(is_group).then(pl.lit("writing_norm")).otherwise("score_name"),
        "rank": pl.when(is_group).then(rank).otherwise("rank").cast(pl.Int32),
    }
    return replace(data, summary=data.summary.with_columns(**changed, **ranked))


def without_scores(data: ReportData, group: Key) -> ReportData:
    """The same where no prompt of `group` has a finite gradient."""
    is_group = (pl.col("task") == group.task) & (pl.col("wrong_answer") == group.wrong_answer)
    numbers = [name for name, kind in data.summary.schema.items() if kind == pl.Float64]
    lost = {name: pl.when(~is_group).then(name) for name in (*numbers, "rank", "score_name")}
    return replace(data, summary=data.summary.with_columns(**lost))


def _summary(group: Key, nodes: list[str], values: np.ndarray, rng: np.random.Generator) -> pl.DataFrame:
    norms = np.abs(values) + np.exp(rng.normal(size=len(nodes)))
    rows: list[dict[str, Any]] = []
    of_head = ("q", "o") if any(".g" in name for name in nodes) else ("q", "k", "v", "o")
    for name, value, norm in zip(nodes, values.tolist(), norms.tolist(), strict=True):
        rows.append(_row(group, "node", name, name, value, norm))
        for part in ("in", "out") if name.startswith("m") else ("k", "v") if ".g" in name else of_head:
            rows.append(_row(group, "part", f"{name}.{part}", name, value / 2, norm / 2))
    score = pl.when((pl.col("level") != "node") | (pl.col("part") != "group")).then("score")
    rank = score.rank("ordinal", descending=True).over("level").cast(pl.Int32)
    return pl.from_dicts(rows, infer_schema_length=None).with_columns(
        rank=rank, rank_ci_low=(rank - 1).clip(1), rank_ci_high=rank + 2
    )


def _row(group: Key, level: str, component: str, node: str, value: float, norm: float) -> dict[str, Any]:
    layer, _, place = node[1:].partition(".")
    head = place.removeprefix("h") if place.startswith("h") else ""
    part = component.rpartition(".")[2] if level == "part" else "head" if head else "group" if place else "mlp"
    row: dict[str, Any] = {**group._asdict(), "level": level, "component": component, "node": node, "part": part}
    row |= {"layer": int(layer), "head": int(head) if head else None, "n": N_PROMPTS}
    row |= {"n_prompts": N_PROMPTS, "n_templates": 12, "attribution_n": N_PROMPTS}
    row |= {"score": abs(value), "score_name": "attribution"}
    for name in ("attribution", "mean_attribution", "taylor"):
        row |= _bounded(name, abs(value)) | _bounded(f"{name}_signed", value) | {f"{name}_sign_agreement": 0.9}
    return row | {key: number for name in NORMS for key, number in _bounded(name, norm).items()}


def _bounded(name: str, value: float) -> dict[str, float]:
    return {f"{name}_mean": value, f"{name}_ci_low": value - 0.1, f"{name}_ci_high": value + 0.1}


def edges(nodes: list[str], rng: np.random.Generator, n: int = 400) -> pl.DataFrame:
    """Edges from the input and random nodes to later ones or the logits, in the order of `edges.parquet`."""
    order = ["input", *nodes, "logits"]
    starts, steps, scores = rng.integers(0, len(nodes), n), rng.integers(1, 9, n), rng.normal(size=n)
    rows: list[dict[str, Any]] = []
    for start, step, score in zip(starts.tolist(), steps.tolist(), scores.tolist(), strict=True):
        stop = min(start + step, len(order) - 1)
        part = rng.choice(["<q>", "<k>", "<v>"]) if ".h" in order[stop] else ""
        ends = {"source": order[start], "target": f"{order[stop]}{part}", "_place": stop * len(order) + start}
        rows.append({**ends, "n": N_PROMPTS, "mean": score, "ci_low": score - 0.1, "ci_high": score + 0.1})
    table = pl.DataFrame(rows).unique(["source", "target"], maintain_order=True).sort("_place", maintain_order=True)
    return table.drop("_place").with_columns(std=pl.lit(0.5), sign_agreement=pl.lit(0.9))


def _sample(nodes: list[str], values: np.ndarray, rng: np.random.Generator) -> pl.DataFrame:
    scores = values * (1 + 0.3 * rng.normal(size=(N_PROMPTS, len(nodes))))
    templates = [f"template {index % 12}" for index in range(N_PROMPTS)]
    return pl.DataFrame(scores.astype(np.float32), schema=nodes).with_columns(template=pl.Series(templates))


def extremes(groups: Sequence[Key]) -> pl.DataFrame:
    """Six prompts at either end of every group, the last two of which the model gets wrong."""
    rows = [
        {
            **group._asdict(), "statistic": "attribution", "end": end, "response": float(place),
            "template": "template 3", "prompt": f"Prompt {place} of {end}", "answer": " Mary|Bob|Tom|Jim|Ann",
            "correct": place < 4,
        }
        for group in groups
        for end in ("least", "most")
        for place in range(6)
    ]  # fmt: skip
    return pl.DataFrame(rows)


def reported_study(folder: Path) -> Path:
    """Results of a prompt file, one of whose templates has a name that tries to be markup."""
    prompts = tasks.draw("ioi", small_tokenizer(), 40, 0)
    lines = [
        {
            "prompt": prompt.text,
            "answer": list(prompt.answers),
            "wrong_answer": list(prompt.wrong_answers),
            "twin": prompt.twin,
            "counterfactual": prompt.counterfactual,
            "template": HOSTILE if index % 2 else "plain",
        }
        for index, prompt in enumerate(prompts)
    ]
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    study = Study(
        model=saved_tiny_gpt2(folder / "model"),
        prompts=str(file),
        wrong_answers=("logit_difference", "foil"),
        out=str(folder / "out"),
        compute=Compute(workers=0, device="cpu", shard_size=8, batch_size=4),
    )
    finished(study)
    evaluate(study.out, 6)
    write_report(study.out)
    return Path(study.out)
