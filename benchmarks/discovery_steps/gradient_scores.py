"""From norms of prompts to scores of nodes: every way that is compared, one number per node.

    norm            all parts of a node                    writing norm   the part that writes to the residual stream
    reading norm    v of a head, in of an MLP              query-key norm q and k of a head (in of an MLP)
    Taylor          of what the node writes: mean of sizes, size of the mean, root mean square

Norms are `raw`, or centred by `position` or `template`, with means over a larger pool of prompts. `random_token` is a
control beside `right_answer`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from gbcd.evaluation.replicas import means
from jaxtyping import Float

from gbcd import wrong_answers
from gbcd.analysis.nodes import NodeMap
from gbcd.analysis.shard_values import Key, finite_values, keys, rows_of
from gbcd.component import Component
from gbcd.engine.calibration import MIN_PROMPTS, Calibration, Centering
from gbcd.engine.engine import Engine
from gbcd.engine.tables import ShardTables
from gbcd.errors import BadInput
from gbcd.evaluation.recovery import Score
from gbcd.models.load import LoadedModel
from gbcd.prompting.tokens import EncodedPrompt
from gbcd.wrong_answers import Scene, wrong_answer
from gbcd.wrong_answers.losses import TowardsTokens

CENTERINGS: tuple[Centering, ...] = ("position", "template")


#: A control: a token drawn from the vocabulary.
RANDOM = "random_token"


@wrong_answer(RANDOM)
def random_token(scene: Scene) -> TowardsTokens:
    """Cross-entropy towards a token drawn from the vocabulary: a target that says nothing of the task."""
    generator = torch.Generator().manual_seed(scene.logits.shape[0])
    drawn = torch.randint(scene.logits.shape[1], (len(scene.logits),), generator=generator)
    return TowardsTokens([(token,) for token in drawn.tolist()])


def definitions(*, with_meaning: bool) -> list[str]:
    """All definitions of the wrong answer; those that need a model of meaning only with one."""
    return [name for name in wrong_answers.names() if with_meaning or not wrong_answers.get(name).needs_meaning]


def calibrations(loaded: LoadedModel, sample: Sequence[EncodedPrompt]) -> dict[Centering, Calibration]:
    """Means that norms are centred by, over the prompts `sample`."""
    engine = Engine(loaded, wrong_answers=(), batch_size=64)
    return {centering: engine.calibrate(sample, centering) for centering in CENTERINGS}


def norms(
    loaded: LoadedModel, encoded: Sequence[EncodedPrompt], calibration: Calibration, names: Sequence[str]
) -> ShardTables:
    """Norms towards the wrong answers `names`."""
    return Engine(loaded, wrong_answers=names, batch_size=64, calibration=calibration).compute(encoded)


def part_values(tables: ShardTables, key: Key, nodes: NodeMap) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By statistic: values [parts, prompts] of one wrong answer, and the rows of these prompts.

    Raises:
        BadInput: the pool is too small for a mean of any template.
    """
    pieces: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for found in finite_values(rows_of(tables.norms, key), nodes):
        pieces.setdefault(found.statistic, []).append((found.values[:, : len(nodes.by_node)].T, found.rows))
    if "centered_grad_norm" not in pieces:
        raise BadInput(f"{key.task}: no prompt has {MIN_PROMPTS} like it to be centred by; raise --pool")
    return {
        name: (np.concatenate([one for one, _ in some], 1), np.concatenate([rows for _, rows in some]))
        for name, some in pieces.items()
    }


def gradient_scores(
    tables: ShardTables,
    components: Sequence[Component],
    chosen: Sequence[int],
    weights: Float[np.ndarray, "replicas prompts"],
    centering: Centering,
) -> Iterator[Score]:
    """Every score of the nodes `chosen`, with replicas; those that are not centred come with centring by position."""
    nodes = NodeMap.of(components)
    for key in keys(tables.norms):
        parts = part_values(tables, key, nodes)
        cost = 4.0 if wrong_answers.get(key.wrong_answer).reads_twin else 2.0
        for method, statistic, per_prompt in _per_prompt(parts, nodes, components, centering):
            table = per_prompt[chosen].T
            drawn = weights[:, parts[statistic][1]]
            if method.endswith("root mean square"):
                replicas = np.sqrt(means(drawn, table**2))
            else:
                replicas = np.abs(means(drawn, table))
            yield Score(method, key.wrong_answer, replicas, cost)


def _per_prompt(
    parts: dict[str, tuple[np.ndarray, np.ndarray]],
    nodes: NodeMap,
    components: Sequence[Component],
    centering: Centering,
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Name, statistic and value per node and prompt of every score that is a mean over prompts."""
    statistics = {f"{centering}: ": "centered_grad_norm"}
    if centering == "position":
        statistics["raw: "] = "grad_norm"
    for label, statistic in statistics.items():
        values, _ = parts[statistic]
        yield label + "norm", statistic, nodes.norms(values)
        yield label + "writing norm", statistic, values[nodes.writers]
        for method, names in (("reading norm", ("v", "in")), ("query-key norm", ("q", "k", "in"))):
            inside = np.array([component.part in names for component in components])
            yield label + method, statistic, nodes.norms(values * inside[:, None])
    if centering == "position":
        signed = parts["taylor_signed"][0][nodes.writers]
        yield "Taylor, mean of sizes", "taylor", np.abs(signed)
        yield "Taylor, size of the mean", "taylor", signed
        yield "Taylor, root mean square", "taylor", signed
