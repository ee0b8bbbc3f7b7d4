"""Estimates of what components do that need no ablation: the baselines that a score has to beat.

With a the value of a component, a' its value in the counterfactual, and g the gradient of the metric m by a, all summed
over positions:

    attribution_patching      (a - a') . g: the first-order effect of resampling (Nanda 2023; Syed et al. 2023,
                              arXiv 2310.10348)
    attribution_patching_ig   the same, with g averaged over k/5, k = 1..5, of the way of the embeddings from the
                              counterfactual to the prompt (Hanna et al. 2024, arXiv 2403.17806, EAP-IG inputs)
    hisp                      |a . g|, head importance (Michel et al. 2019, arXiv 1905.10650, section 4.1)
    direct_effect             see `direct_effect.py`

The first two and the last are signed and estimate the drop that an ablation would cause. A backward pass costs about as
much as a forward pass, so it is counted as one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gbcd.engine.references import RunReference
from gbcd.engine.scores import ScoreTable, Statistic
from gbcd.evaluation.direct_effect import direct_effects
from gbcd.evaluation.metrics import Metric, metric_gradient
from gbcd.evaluation.pairs import Batch, Pairs
from gbcd.evaluation.places import Place
from gbcd.models.captured import EmbeddingGradient, Gradient, InputRows, MapGradient
from gbcd.models.decoder import Decoder, Options, Run, Start
from gbcd.models.load import LoadedModel

INTEGRATION_STEPS = 5

_CHANGE, _VALUE = Statistic("change", "other", False), Statistic("value", None, False)


@dataclass(frozen=True)
class Attribution:
    """One baseline: values per prompt and component, and its cost in forward passes over all prompts."""

    values: Float[np.ndarray, "prompts components"]
    cost: float


def attribute(
    loaded: LoadedModel, pairs: Pairs, places: Sequence[Place], metric: Metric, *, with_direct: bool
) -> dict[str, Attribution]:
    """All baselines that need a pass through the model, by name.

    Args:
        loaded: the model, frozen.
        pairs: the prompts.
        places: where components lie.
        metric: what is explained.
        with_direct: include the direct effect, which exists only for places that write to the residual stream.
    """
    costs = {"attribution_patching": 3.0, "attribution_patching_ig": 1.0 + 2 * INTEGRATION_STEPS, "hisp": 2.0}
    if with_direct:
        costs["direct_effect"] = 1.0
    found = {name: np.zeros((len(pairs.encoded), len(places))) for name in costs}
    for batch in pairs.batches:
        for name, values in _batch(loaded, batch, places, metric, with_direct).items():
            found[name][batch.rows] = values.double().cpu().numpy()
    return {name: Attribution(found[name], cost) for name, cost in costs.items()}


def _batch(
    loaded: LoadedModel, batch: Batch, places: Sequence[Place], metric: Metric, with_direct: bool
) -> dict[str, Float[Tensor, "prompt place"]]:
    decoder = loaded.decoder
    packed, packed_others = batch.packed(loaded), batch.packed_references(loaded)
    names = {place.value for place in places} if with_direct else ()
    run = decoder.run(packed, Options(graph=True, keep=True, record=names, edges=with_direct))
    change = _Change(decoder, run, decoder.run(packed_others, Options(keep=True)))
    ends = decoder.embed(packed_others), decoder.embed(packed)
    hidden: list[Tensor] = []

    def scored(one: Run, *statistics: Statistic) -> dict[str, Tensor]:
        table = ScoreTable(loaded.components, len(batch.rows), {"other": change}, statistics)
        one.backward(metric_gradient(metric, one, batch.rows), _maps_to(table, hidden))
        columns = [index[place.part] for place in places]
        return {name: values[:, columns] for name, values in table.values().items()}

    index = {component.name: number for number, component in enumerate(loaded.components)}
    here = scored(run, _CHANGE, _VALUE)
    total = here["change"].clone()
    for step in range(1, INTEGRATION_STEPS):
        start = Start(0, torch.lerp(*ends, step / INTEGRATION_STEPS))
        total += scored(decoder.run(packed, Options(graph=True), start), _CHANGE)["change"]
    found = {
        "attribution_patching": here["change"],
        "attribution_patching_ig": total / INTEGRATION_STEPS,
        "hisp": here["value"].abs(),
    }
    return found | ({"direct_effect": direct_effects(decoder, run, hidden[0], places)} if with_direct else {})


def _maps_to(table: ScoreTable, hidden: list[Tensor]) -> Callable[[Gradient], None]:
    """Hand gradients of maps to `table`, and put the gradient by what the unembedding reads in `hidden`."""

    def receive(gradient: Gradient) -> None:
        if isinstance(gradient, MapGradient):
            table(gradient)
        elif isinstance(gradient, EmbeddingGradient):
            hidden.append(gradient.d_hidden)

    return receive


class _Change(RunReference):
    """From the counterfactual to the prompt, whatever run the gradient is of: the steps of an integral share it."""

    def __init__(self, decoder: Decoder, run: Run, other: Run) -> None:
        """Both kept inputs and outputs of maps."""
        super().__init__(other, decoder.token_table)
        self._clean_inputs = {(one.name, one.at_answers): one for one in run.inputs()}
        self._clean_maps = run.trace.maps

    def difference(self, rows: InputRows) -> Float[Tensor, "example pos d_in"]:
        """See `Reference`."""
        return super().difference(self._clean_inputs[rows.name, rows.at_answers])

    def output_difference(self, gradient: MapGradient) -> Float[Tensor, "example pos d_out"]:
        """See `Reference`."""
        return super().output_difference(gradient._replace(output=self._clean_maps[gradient.components].output))
