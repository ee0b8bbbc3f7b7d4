"""Judge a circuit of edges from a file, one's own or somebody else's, on the model and prompts of a study."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Int

from gbcd.errors import BadInput
from gbcd.evaluation.agreement import SIZES, cmd, cpr, faithfulness
from gbcd.evaluation.circuit_sets import EdgeTable, Ranking
from gbcd.evaluation.evaluation_plan import PAIRS_PER_BLOCK
from gbcd.evaluation.measured import edge_config
from gbcd.evaluation.metrics import metric_for
from gbcd.evaluation.mib import Importances, read_importances
from gbcd.evaluation.planning import metric_name
from gbcd.evaluation.resampling import Draws
from gbcd.evaluation.work import circuit_metrics, load_model, pairs_of
from gbcd.models.load import LoadedModel
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.run.inputs import Inputs
from gbcd.run.settling import settled_device
from gbcd.run.shards import read_plan
from gbcd.run.store import Store
from gbcd.study import AskedDevice, Compute

SCHEMA = pl.Schema(
    {"task": pl.String(), "circuit": pl.String(), "size": pl.Float64(), "n_edges": pl.Int64()}
    | {name: pl.Float64() for name in ("value", "ci_low", "ci_high")}
)
"""Rows of `judge`: the faithfulness of the circuit as it is (`given`) and, where the file scores all edges, of circuits
of MIB's ten sizes (`signed`, `size`); and `cpr` and `cmd`, without a size."""


class _Given(NamedTuple):
    """What is run: the circuit as it is, those of ten sizes, none and all of the edges."""

    table: EdgeTable
    circuits: list[Int[np.ndarray, " members"]]
    by_size: dict[Ranking, list[int]]


def judge(out: str, path: Path, n_pairs: int = 128, device: AskedDevice = "auto") -> pl.DataFrame:
    """Faithfulness of a circuit on every task of a study.

    Args:
        out: a study.
        path: a `.json` or `.pt` file of EAP-IG, MIB or gbcd.
        n_pairs: prompts per task.
        device: as of `evaluate`.

    Raises:
        BadInput: the file is no circuit, or one of a model of another shape; the device is not available; or no prompt
            has a counterfactual.
    """
    store = Store(out)
    plan, found = read_plan(store), read_importances(path)
    loaded = load_model(store, plan, settled_device(Compute(device=device)))
    cfg = edge_config(loaded)
    if found.cfg != cfg:
        raise BadInput(
            f"{str(path)!r} is a circuit of another model: it is of {found.cfg}, and {loaded.name!r} is {cfg}"
        )
    given = _given(found)
    inputs, rows = Inputs(store, plan), list[dict[str, Any]]()
    for task in plan.tasks:
        prompts = pairs_of(loaded, inputs, task, n_pairs)
        if len(prompts) > 1:
            draws = Draws([prompt.prompt.template for prompt in prompts], plan.study.seed)
            rows += [{"task": task, **row} for row in _rows(loaded, given, task, prompts, draws)]
    if not rows:
        raise BadInput(f"{out!r} has no task with two prompts that have a counterfactual or partner to judge by")
    return pl.from_dicts(rows, schema=SCHEMA)


def _given(found: Importances) -> _Given:
    table, by_size = EdgeTable(found.cfg), dict[Ranking, list[int]]()
    circuits = [np.flatnonzero(found.inside)]
    rankings: tuple[Ranking, ...] = ("signed", "size") if found.is_complete else ()
    for ranking in rankings:
        by_size[ranking] = list(range(len(circuits), len(circuits) + len(SIZES)))
        circuits += table.cut(found.scores, ranking)
    return _Given(table, [*circuits, np.array([], dtype=np.int64), np.arange(table.n)], by_size)


def _rows(
    loaded: LoadedModel, given: _Given, task: str, prompts: list[EncodedPrompt], draws: Draws
) -> Iterator[dict[str, Any]]:
    members, metrics = [one.tolist() for one in given.circuits], list[np.ndarray]()
    for start in range(0, len(prompts), PAIRS_PER_BLOCK):
        block = prompts[start : start + PAIRS_PER_BLOCK]
        metric = metric_for(metric_name(task, prompts), block, loaded.device)
        metrics.append(circuit_metrics(loaded, block, metric, members))
    values = draws.means(np.concatenate(metrics))
    curve = faithfulness(values, values[:, -2:-1], values[:, -1:])
    n_edges = len(members[0])
    row = {"circuit": "given", "size": n_edges / given.table.n, "n_edges": n_edges}
    yield {**row, **draws.bounded("value", curve[:, 0])}
    for ranking, columns in given.by_size.items():
        for size, column in zip(SIZES, columns, strict=True):
            row = {"circuit": ranking, "size": size, "n_edges": len(members[column])}
            yield {**row, **draws.bounded("value", curve[:, column])}
        name, area = ("cpr", cpr) if ranking == "signed" else ("cmd", cmd)
        yield {"circuit": name, **draws.bounded("value", np.array([area(one) for one in curve[:, columns]]))}
