"""Which score finds the circuit? Every loss, reference, statistic and backward rule against measured effects.

    python benchmarks/discovery.py --model models/smollm2-135m --tasks ioi --pairs 64 --json RESULT.json

Of each task, `--pairs` prompts are drawn, as evenly over templates as the task draws them. On each, every head and MLP
is resampled by itself, once by the prompt's counterfactual and once by a partner (another prompt of its template and
length); and the engine computes its statistics for every loss and set of rules. Work is cut into blocks of prompts,
each a file under `--work`, so that an interrupted run resumes; `--done` makes the tables of the blocks that are there.
`score_tables.py` holds scores against effects; a score is judged by the effects of its own reference, and one without a
reference by both.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from score_tables import figures, held_out, layers_of, printed

from gbcd import tasks, wrong_answers
from gbcd.analysis.nodes import NodeMap, finite_values
from gbcd.engine.calibration import Calibration
from gbcd.engine.engine import Engine
from gbcd.evaluation.metrics import metric_for
from gbcd.evaluation.patching import PatchedBatch
from gbcd.evaluation.places import places_of
from gbcd.models.load import LoadedModel, load
from gbcd.models.pieces import LinearMap
from gbcd.models.rules import RULES
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.run.compared import PartnerPool
from gbcd.versions import versions
from gbcd.wrong_answers import LossContext
from gbcd.wrong_answers.losses import Target, TowardsTokens

Truth = Literal["counterfactual", "partner"]
TRUTHS: tuple[Truth, ...] = ("counterfactual", "partner")

#: Losses; those of the second row with partners too. `logit_difference` reads the prompt alone, `..._twin` both.
LOSSES = ("foil", "right_answer", "random_token")
PARTNER_LOSSES = ("margin", "logit_difference", "inverse_logits")
#: Statistics that compare with the counterfactual or partner; the others are taken once.
COMPARED = ("contrast_norm", "attribution_signed")
KEPT = ("grad_norm", "centered_grad_norm", "writing_norm", "taylor_signed", "mean_attribution_signed", *COMPARED)


def random_token(context: LossContext) -> Target:
    """Cross-entropy towards a token that has nothing to do with the prompt: drawn by a hash of the right answer."""
    vocabulary = context.logits.shape[1]
    return TowardsTokens([(zlib.crc32(str(tokens).encode()) % vocabulary,) for tokens in context.answers])


class Job(NamedTuple):
    """What one file holds: `pairs` prompts of a task from the prompt `start` on, by one truth."""

    model: str
    task: str
    truth: Truth
    start: int
    pairs: int
    pool: int
    seed: int

    def file(self, work: str) -> Path:
        name = f"{Path(self.model).name}.{self.task}.{self.truth}.{self.pool}.{self.seed}.{self.start}-{self.pairs}.npz"
        return Path(work) / name


def main() -> None:
    given = _arguments()
    Path(given.work).mkdir(parents=True, exist_ok=True)
    starts = range(0, given.pairs, given.block)
    jobs = [
        Job(given.model, task, truth, start, min(given.block, given.pairs - start), given.pool, given.seed)
        for task in given.tasks for start in starts for truth in TRUTHS
    ]  # fmt: skip
    if not given.done:
        _measure_all(jobs, given.work, given.workers)
    record: dict[str, Any] = {
        "versions": versions(),
        "settings": {**vars(given), "model": Path(given.model).name, "work": None},
    }
    record["tasks"] = {}
    for task in given.tasks:
        tables = {truth: _joined([job for job in jobs if (job.task, job.truth) == (task, truth)], given.work)
                  for truth in TRUTHS}  # fmt: skip
        tables = {truth: table | _controls(given.model, table) for truth, table in tables.items()}
        rows = [row for truth in TRUTHS for row in figures(truth, tables[truth], given.seed)]
        record["tasks"][task] = {"figures": rows, "held_out": list(held_out(tables))}
    if given.json:
        Path(given.json).write_text(json.dumps(_rounded(record), separators=(",", ":")) + "\n")
    print(printed(record))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Scores against measured effects.")
    parser.add_argument("--model", default="reference", help="reference, or the folder of a model")
    parser.add_argument("--tasks", nargs="+", default=["ioi"])
    parser.add_argument("--pairs", type=int, default=64, help="prompts of each task on which effects are measured")
    parser.add_argument("--block", type=int, default=8, help="prompts of a file")
    parser.add_argument("--pool", type=int, default=512, help="prompts for the means, and to draw partners from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--work", default="runs/discovery", help="folder for the blocks")
    parser.add_argument("--done", action="store_true", help="only make the tables, of the blocks that are there")
    parser.add_argument("--json", help="file for all figures")
    return parser.parse_args()


def _measure_all(jobs: Sequence[Job], work: str, workers: int) -> None:
    waiting = [job for job in jobs if not job.file(work).exists()]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        started = {pool.submit(_measure, job, work): job for job in waiting}
        for number, one in enumerate(as_completed(started), start=1):
            one.result()
            print(f"{number} of {len(waiting)}: {started[one].file(work).name}", flush=True)


def _measure(job: Job, work: str) -> None:
    torch.set_num_threads(1)
    loaded, calibration, prompts = _setting(job.model, job.task, job.pool, job.seed)
    prompts = prompts[job.start : job.start + job.pairs]
    if job.truth == "partner":
        prompts = [replace(prompt, counterfactual_ids=None) for prompt in prompts]
    prompts = [prompt for prompt in prompts if prompt.reference == job.truth]
    tables: dict[str, np.ndarray] = {"templates": np.array([prompt.prompt.template for prompt in prompts])}
    if prompts:
        tables |= _effects(loaded, prompts, tasks.get(job.task).metric)
        tables |= dict(_statistics(loaded, calibration, prompts, job.truth))
    partial = job.file(work).with_suffix(".tmp")
    with partial.open("wb") as file:
        np.savez_compressed(file, **tables)  # pyright: ignore[reportArgumentType]
    partial.rename(job.file(work))


@cache
def _setting(model: str, task: str, pool: int, seed: int) -> tuple[LoadedModel, Calibration, list[EncodedPrompt]]:
    """The model, the means, and prompts with partners; the first of each template come first."""
    if "random_token" not in wrong_answers.names():
        wrong_answers.wrong_answer("random_token")(random_token)
    loaded = load(model, device="cpu")
    prompts = loaded.encode(tasks.draw(task, loaded.tokenizer, pool, seed))
    partners = PartnerPool(seed)
    partners.add(prompts)
    calibration = Engine(loaded, []).calibrate(prompts, centering="template", batch_size=16)
    met: dict[str, int] = {}
    rank = [met.setdefault(one.prompt.template, 0) for one in prompts]
    for index, one in enumerate(prompts):
        rank[index] = met[one.prompt.template]
        met[one.prompt.template] += 1
    order = sorted(range(len(prompts)), key=lambda index: rank[index])
    return loaded, calibration, [partners.with_partner(prompts[index]) for index in order]


def _effects(loaded: LoadedModel, prompts: Sequence[EncodedPrompt], metric: str) -> dict[str, np.ndarray]:
    places = [place for place in places_of(loaded.components, "node") if place.name in _nodes(loaded)]
    batch = PatchedBatch(loaded, prompts, places, metric_for(metric, prompts, loaded.device))
    names = np.array([place.name for place in places])
    return {"nodes": names, "effects": batch.drops(places, "resample"), "gap": batch.clean - batch.other}


def _nodes(loaded: LoadedModel) -> list[str]:
    nodes = NodeMap.of(loaded.components).nodes
    return [node.name for node in nodes if node.is_circuit_part]


def _statistics(
    loaded: LoadedModel, calibration: Calibration, prompts: Sequence[EncodedPrompt], truth: Truth
) -> Iterator[tuple[str, Float[np.ndarray, "prompts nodes"]]]:
    """Values by the name `loss/rules/statistic`."""
    alone = [replace(prompt, twin_ids=None) for prompt in prompts]
    losses = PARTNER_LOSSES if truth == "partner" else (*PARTNER_LOSSES, *LOSSES)
    if not all(prompt.wrong_ids for prompt in prompts):
        losses = tuple(loss for loss in losses if loss not in ("margin", "logit_difference", "foil"))
    for rules in RULES:
        yield from _of_engine(Engine(loaded, losses, calibration, rules), alone, rules, "")
    if any(prompt.twin_ids for prompt in prompts):
        engine = Engine(loaded, ["logit_difference"], calibration)
        yield from _of_engine(engine, prompts, "plain", "_twin")


def _of_engine(
    engine: Engine, prompts: Sequence[EncodedPrompt], rules: str, suffix: str
) -> Iterator[tuple[str, np.ndarray]]:
    nodes = NodeMap.of(engine.components)
    chosen = [len(engine.components) + index for index, node in enumerate(nodes.nodes)
              if node.is_circuit_part]  # fmt: skip
    norms = engine.compute(prompts).norms
    for loss in dict.fromkeys(norms["wrong_answer"].to_pylist()):
        rows = norms.filter(np.array(norms["wrong_answer"].to_pylist()) == loss)
        for one in finite_values(rows, nodes):
            if one.statistic in KEPT:
                values = np.full((len(prompts), len(chosen)), np.nan)
                values[one.rows] = one.values[:, chosen]
                yield f"{loss}{suffix}/{rules}/{one.statistic}", values


def _rounded(found: Any) -> Any:
    """The same with four digits, and null for what is not defined."""
    if isinstance(found, float):
        return round(found, 4) if np.isfinite(found) else None
    if isinstance(found, dict):
        return {name: _rounded(value) for name, value in found.items()}
    return [_rounded(value) for value in found] if isinstance(found, list | tuple) else found


def _joined(jobs: Sequence[Job], work: str) -> dict[str, np.ndarray]:
    """The blocks of one truth, one after the other; names of nodes once."""
    blocks = [dict(np.load(job.file(work))) for job in jobs if job.file(work).exists()]
    blocks = [block for block in blocks if len(block["templates"])]
    names = [name for name in blocks[0] if name != "nodes"] if blocks else []
    joined = {name: np.concatenate([block[name] for block in blocks]) for name in names}
    return joined | ({"nodes": blocks[0]["nodes"]} if blocks else {})


@cache
def _sizes(model: str) -> dict[str, float]:
    """Norm of the weights that each node writes with."""
    loaded, found = load(model, device="cpu"), dict[str, float]()
    for spec in loaded.spec.maps:
        if spec.axis == "in":
            one = LinearMap.of(loaded.model, spec)
            norms = one.weight.unflatten(0, (len(one.components), -1)).flatten(1).norm(dim=1).tolist()
            found |= zip((name.rsplit(".", 1)[0] for name in one.components), norms, strict=True)
    return found


def _controls(model: str, tables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scores that look at no prompt: the layer, and the norm of the weights that a node writes with."""
    if not tables:
        return {}
    sizes, nodes = _sizes(model), tables["nodes"]
    values = {"layer": layers_of(nodes) + 1.0, "writing_weight_norm": np.array([sizes[name] for name in nodes])}
    return {f"no loss/-/{name}": np.tile(value, (len(tables["templates"]), 1)) for name, value in values.items()}


if __name__ == "__main__":
    main()
