"""Compiled programs, part by part: does a score tell the parts that the program uses from those it does not?

All inputs of both shipped programs, so there is nothing to draw and no interval. Truth is the published list of
parts, queries and keys included. Mean and zero ablation are held against it as well, and float64 beside float32, since
what ought to cancel leaves rounding errors that float32 may put above a vanishing gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from gbcd.evaluation.interventions import measure_effects
from gbcd.evaluation.points import points
from jaxtyping import Float

from discovery_steps.gradient_scores import calibrations, norms, part_values
from gbcd import tasks
from gbcd.analysis.nodes import NodeMap
from gbcd.analysis.shard_values import Key
from gbcd.evaluation.agreement import auroc
from gbcd.evaluation.metrics import metric_for
from gbcd.evaluation.pairs import alone
from gbcd.models import load as models
from gbcd.models.load import LoadedModel
from gbcd.prompting.outputs import space_of
from gbcd.prompting.tokens import EncodedPrompt, encode

PROGRAMS = ("tracr_xproportion", "tracr_reverse")


def program_rows() -> Iterator[dict[str, Any]]:
    """AUROC of every score of parts: `program, dtype, wrong_answer, method, auroc, auroc_pessimistic, n_parts`."""
    for program in PROGRAMS:
        for dtype in ("float32", "float64"):
            yield from _of_model(program, models.load(program, "cpu", dtype), dtype)


def _of_model(program: str, loaded: LoadedModel, dtype: Literal["float32", "float64"]) -> Iterator[dict[str, Any]]:
    task = tasks.get(program)
    assert task.circuit is not None
    encoded = encode(task.draw(loaded.tokenizer, task.capacity(loaded.tokenizer), 0), loaded.tokenizer, loaded.context)
    chosen = [index for index, part in enumerate(loaded.components) if part.is_circuit_part]
    members = np.array([loaded.components[index].name in task.circuit.parts for index in chosen])
    scores = {("", name): values for name, values in _ablations(loaded, encoded, task.metric).items()}
    for definition in ("foil", "inverse_logits"):
        for method, values in _gradients(loaded, program, encoded, definition).items():
            scores[definition, method] = values[chosen]
    for (definition, method), values in scores.items():
        figures = {
            "auroc": round(float(auroc(values, members)), 4),
            "auroc_pessimistic": round(float(auroc(values, members, pessimistic=True)), 4),
        }
        keys = {"program": program, "dtype": dtype, "wrong_answer": definition, "method": method}
        yield keys | figures | {"n_members": int(members.sum()), "n_parts": len(members)}


def _ablations(
    loaded: LoadedModel, encoded: list[EncodedPrompt], metric_name: str
) -> dict[str, Float[np.ndarray, " parts"]]:
    """Sizes of mean effects of the parts, in the order of the components."""
    pairs = alone(encoded, 128)
    metric = metric_for(metric_name, pairs.encoded, loaded.device, space_of(loaded.tokenizer))
    effects = measure_effects(loaded, pairs, points(loaded.sites, loaded.components, "part"), metric)
    return {f"{name} ablation": np.abs(drops.mean(axis=0)) for name, drops in effects.drops.items()}


def _gradients(
    loaded: LoadedModel, program: str, encoded: list[EncodedPrompt], definition: str
) -> dict[str, Float[np.ndarray, " parts"]]:
    """Scores of all components; prompts of one length are one template, which centring needs."""
    nodes = NodeMap.of(loaded.components)
    key = Key(program, definition)
    by_position, by_template = (
        part_values(norms(loaded, encoded, calibration, [definition]), key, nodes)
        for calibration in calibrations(loaded, encoded).values()
    )
    centred = by_template["centered_grad_norm"][0].mean(axis=1)
    of_node = np.empty(len(centred))
    writer = {node.name: index for node, index in zip(nodes.nodes, nodes.writers, strict=True)}
    for index, part in enumerate(loaded.components):
        of_node[index] = centred[writer[part.node]]
    signed = by_position["taylor_signed"][0]
    return {
        "raw norm": by_position["grad_norm"][0].mean(axis=1),
        "centred by position": by_position["centered_grad_norm"][0].mean(axis=1),
        "centred by length": centred,
        "centred by length, of what the part's node writes": of_node,
        "Taylor, mean of sizes": np.abs(signed).mean(axis=1),
        "Taylor, size of the mean": np.abs(signed.mean(axis=1)),
    }
