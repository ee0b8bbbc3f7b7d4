"""Circuits in the files of EAP-IG and of the MIB benchmark: written, read, and judged on the prompts of a study.

    TASK_MODEL/importances.pt      a dictionary that torch saved: `cfg`, `src_nodes`, `dst_nodes`, and as matrices of
                                   sources x targets `edges_scores` and `edges_in_graph`; `nodes_in_graph` of sources
    TASK_MODEL/importances.json    the same in the format of `gbcd.analysis.circuits`

Sources are the input and, layer by layer, heads and MLP; targets are, layer by layer, queries of all heads, their keys,
their values and the MLP, and last the logits (https://github.com/hannamw/EAP-IG, `Graph.to_pt`, `Graph.to_json`).
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int

from gbcd.analysis.circuit_files import read_circuits
from gbcd.analysis.circuits import Circuit, Config, Edge, edge_ends, edge_names, n_edges, node_names
from gbcd.analysis.nodes import Key
from gbcd.errors import BadInput
from gbcd.evaluation.circuit_sets import SIZES, Circuits, EdgeScore, EdgeTable, Ranking, of_edges
from gbcd.evaluation.curves import cmd, cpr, faithfulness, least
from gbcd.evaluation.evaluation_plan import PAIRS_PER_BLOCK
from gbcd.evaluation.measured import edge_config
from gbcd.evaluation.metrics import metric_for
from gbcd.evaluation.planning import metric_name
from gbcd.evaluation.recovery import Method
from gbcd.evaluation.resampling import Draws
from gbcd.evaluation.tables import EDGE_SCORES_FILE
from gbcd.evaluation.work import circuit_metrics, load_model, pairs_of
from gbcd.models.load import LoadedModel
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.run.inputs import Inputs
from gbcd.run.results import EDGES_FILE, read_stored
from gbcd.run.settling import settled_device
from gbcd.run.shards import read_plan
from gbcd.run.store import Store
from gbcd.study import AskedDevice, Compute

JUDGED = pl.Schema(
    {"task": pl.String(), "circuit": pl.String(), "size": pl.Float64(), "n_edges": pl.Int64()}
    | {name: pl.Float64() for name in ("value", "ci_low", "ci_high")}
)
"""Rows of `judge`: the faithfulness of the circuit as it is (`given`) and, where the file scores all edges, of its
best edges, as many, before dead ends are dropped (`as_many_signed`, `as_many_size`), and of circuits of MIB's ten sizes
(`signed`, `size`); and `cpr` and `cmd`, without a size."""


class Importances(NamedTuple):
    """Edges of a model in canonical order.

    Attributes:
        cfg: shape of the model.
        scores: of every edge; zero where a file lists none.
        inside: which are in the circuit.
        is_complete: whether the file scores every edge.
    """

    cfg: Config
    scores: Float[np.ndarray, " edges"]
    inside: Bool[np.ndarray, " edges"]
    is_complete: bool


def export(out: str, folder: Path) -> list[Path]:
    """Write the circuit of every task and wrong answer of a study, with scores of all edges.

    Scores are those of the study's edges, else of attribution patching by `gbcd evaluate`, else each edge has the
    smaller score of its ends.

    Returns:
        The folders that were written.

    Raises:
        BadInput: the study was not reduced, or its model is not one that the format describes.
    """
    store = Store(out)
    model = Path(read_plan(store).study.model).name
    written: list[Path] = []
    for key, circuit in read_circuits(out).items():
        inside = {name for name, edge in circuit.edges.items() if edge.in_graph}
        members = np.array([name in inside for name in edge_names(circuit.cfg)])
        target = folder / f"{key.task}_{model}"
        if target in written:
            target = folder / f"{key.task}_{model}_{key.wrong_answer}"
        write_importances(target, Importances(circuit.cfg, _scores(store, key, circuit), members, True), circuit)
        written.append(target)
    if not written:
        raise BadInput(f"{out!r} has no circuits: the format describes models with norms, heads and MLPs")
    return written


def write_importances(folder: Path, found: Importances, circuit: Circuit) -> None:
    """Write both files; scores of nodes are those of `circuit`."""
    cfg, (rows, columns) = found.cfg, _matrix(found.cfg)
    shape = 1 + cfg.n_layers * (cfg.n_heads + 1), cfg.n_layers * (3 * cfg.n_heads + 1) + 1
    scores, inside = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
    scores[rows, columns] = torch.tensor(found.scores, dtype=torch.float32)
    inside[rows, columns] = torch.tensor(found.inside)
    sources = node_names(cfg)[:-1]
    content = {
        "cfg": cfg.model_dump(),
        "src_nodes": sources,
        "dst_nodes": _targets(cfg),
        "edges_scores": scores,
        "edges_in_graph": inside,
        "nodes_in_graph": torch.tensor([circuit.nodes[name].in_graph for name in sources]),
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / "importances.pt")
    both = zip(found.scores.tolist(), found.inside.tolist(), strict=True)
    edges = [Edge(score=score, in_graph=is_inside) for score, is_inside in both]
    whole = circuit.model_copy(update={"edges": dict(zip(edge_names(cfg), edges, strict=True)), "selection": None})
    (folder / "importances.json").write_bytes(whole.to_json())


def read_importances(path: Path) -> Importances:
    """Read a circuit file, `.pt` or `.json`, whoever wrote it.

    Raises:
        BadInput: there is no such file, or it is no circuit.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"circuit {str(path)!r} cannot be read: {error.strerror}") from error
    if path.suffix == ".json":
        circuit = Circuit.from_json(content, str(path))
        listed = [circuit.edges.get(name) for name in edge_names(circuit.cfg)]
        scores = np.array([0.0 if edge is None else edge.score for edge in listed])
        inside = np.array([edge is not None and edge.in_graph for edge in listed])
        return Importances(circuit.cfg, scores, inside, None not in listed)
    try:
        loaded: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
        cfg = Config.model_validate(loaded["cfg"])
        rows, columns = _matrix(cfg)
        scores, inside = (loaded[name][rows, columns].numpy() for name in ("edges_scores", "edges_in_graph"))
    except (KeyError, ValueError, IndexError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise BadInput(f"{str(path)!r} is not a circuit in the format of EAP-IG: {error}") from error
    return Importances(cfg, scores.astype(np.float64), inside.astype(bool), True)


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
    circuits, table = Circuits(), EdgeTable(found.cfg)
    circuits.add("edges", np.flatnonzero(found.inside))
    score, by_size = EdgeScore(Method("given", None, 0.0), found.scores), dict[Ranking, list[int]]()
    rankings: tuple[Ranking, ...] = ("signed", "size") if found.is_complete else ()
    for ranking in rankings:
        [best] = table.cut(found.scores, ranking, [int(found.inside.sum())])
        by_size[ranking] = [circuits.add("edges", best), *of_edges(circuits, table, score, ranking)]
    inputs, rows = Inputs(store, plan), list[dict[str, Any]]()
    for task in plan.tasks:
        prompts = pairs_of(loaded, inputs, task, n_pairs)
        if len(prompts) > 1:
            draws = Draws([prompt.prompt.template for prompt in prompts], plan.study.seed)
            curve = _faithfulness(loaded, prompts, metric_name(task, prompts), circuits, table.n, draws)
            rows += [{"task": task, **row} for row in _judged(circuits, table.n, curve, by_size, draws)]
    if not rows:
        raise BadInput(f"{out!r} has no task with two prompts that have a counterfactual or partner to judge by")
    return pl.from_dicts(rows, schema=JUDGED)


def _faithfulness(
    loaded: LoadedModel, prompts: list[EncodedPrompt], metric: str, circuits: Circuits, n_edges: int, draws: Draws
) -> Float[np.ndarray, "resamples circuit"]:
    members, found = [*circuits.lists("edges"), [], list(range(n_edges))], list[np.ndarray]()
    for start in range(0, len(prompts), PAIRS_PER_BLOCK):
        block = prompts[start : start + PAIRS_PER_BLOCK]
        found.append(circuit_metrics(loaded, block, metric_for(metric, block, loaded.device), members))
    values = draws.means(np.concatenate(found))
    return faithfulness(values[:, :-2], values[:, -2:-1], values[:, -1:])


def _judged(
    circuits: Circuits,
    n_edges: int,
    curve: Float[np.ndarray, "resamples circuit"],
    by_size: Mapping[Ranking, list[int]],
    draws: Draws,
) -> Iterator[dict[str, Any]]:
    sizes = [len(members) for members in circuits.members["edges"]]
    given = sizes[0] / n_edges
    named = [("given", given, 0), *((f"as_many_{ranking}", given, columns[0]) for ranking, columns in by_size.items())]
    for ranking, [_, *columns] in by_size.items():
        named += [(ranking, size, column) for size, column in zip(SIZES, columns, strict=True)]
    for circuit, size, column in named:
        row = {"circuit": circuit, "size": size, "n_edges": sizes[column]}
        yield {**row, **draws.bounded("value", curve[:, column])}
    for ranking, [_, *columns] in by_size.items():
        name, area = ("cpr", cpr) if ranking == "signed" else ("cmd", cmd)
        areas = np.array([area(one) for one in curve[:, columns]])
        yield {"circuit": name, **draws.bounded("value", areas, least(name))}


def _scores(store: Store, key: Key, circuit: Circuit) -> Float[np.ndarray, " edges"]:
    """The best scores of edges that a study has."""
    sources = ((EDGES_FILE, pl.col("wrong_answer") == key.wrong_answer, "mean"),
               (EDGE_SCORES_FILE, pl.col("method") == "attribution_patching", "score"))  # fmt: skip
    for path, chosen, column in sources:
        if store.exists(path):
            rows = read_stored(store, path).filter(chosen, task=key.task)
            if len(rows) == n_edges(circuit.cfg):
                return rows[column].to_numpy()
    known = {name: node.score for name, node in circuit.nodes.items() if node.score is not None}
    return EdgeTable(circuit.cfg).of_nodes(known)


def _targets(cfg: Config) -> list[str]:
    parts = [[f"a{layer}.h{head}<{part}>" for part in "qkv" for head in range(cfg.n_heads)] + [f"m{layer}"]
             for layer in range(cfg.n_layers)]  # fmt: skip
    return [*(name for block in parts for name in block), "logits"]


def _matrix(cfg: Config) -> tuple[Int[np.ndarray, " edges"], Int[np.ndarray, " edges"]]:
    """Row and column of every edge, in canonical order, in the format's matrices."""
    row = {name: index for index, name in enumerate(node_names(cfg))}
    column = {name: index for index, name in enumerate(_targets(cfg))}
    sources, targets = edge_ends(cfg)
    return np.array([row[name] for name in sources]), np.array([column[name] for name in targets])
