"""The passes over a batch: forward over prompts and over what they are compared with, and back for each loss.

An attribution compares with the counterfactual (or partner) by `(x - x') . g`. With one step g is the gradient on the
prompt. With N steps it is the mean of the gradients at the points k / N, k = 1 ... N, of the straight line from the
counterfactual's embeddings to the prompt's, where x and x' stay those of the two runs: integrated gradients over inputs
(Hanna et al. 2024, arXiv 2403.17806, section 3). The target of the loss is that of the prompt throughout. Every other
statistic is of the prompt alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gbcd.component import Component
from gbcd.engine.edge_sources import EdgeSources, recorded
from gbcd.engine.edges import EdgeScores
from gbcd.engine.neurons import NeuronScores
from gbcd.engine.references import Reference, RunReference, aligned
from gbcd.engine.scores import STATISTICS, ScoreTable
from gbcd.engine.tables import COMPARED, EDGES
from gbcd.engine.tables import STATISTICS as ALL
from gbcd.models.captured import Gradient
from gbcd.models.decoder import Decoder, Run, Start
from gbcd.models.forward import Options
from gbcd.models.packing import Packed
from gbcd.models.rules import RULES, RulesName
from gbcd.models.tails import columns_of, known_in, tail_run

#: The statistic whose gradient is integrated.
ATTRIBUTION = "attribution"

#: From a run to a loss's gradient by its logits.
LossGradient = Callable[[Run], Float[Tensor, "prompt seq vocab"]]


class Scores(NamedTuple):
    """What one loss gives of a batch.

    Attributes:
        statistics: by name.
        many: attributions of `EDGES` and of the neurons of MLPs (by the MLP's name), which are kept as moments over
            prompts; empty where none were asked for, or nothing is compared with.
    """

    statistics: Mapping[str, Float[Tensor, "prompt component"]]
    many: Mapping[str, Float[Tensor, "prompt value"]]


class Passes:
    """Runs of one model, and the scores of their components."""

    def __init__(
        self,
        decoder: Decoder,
        components: Sequence[Component],
        rules: RulesName = "plain",
        edges: bool = False,
        neurons: Sequence[str] = (),
        steps: int = 1,
        statistics: Collection[str] = ALL,
    ) -> None:
        """Nothing runs yet.

        Args:
            decoder: the model.
            components: columns of the statistics.
            rules: backward rules.
            edges: score edges, too.
            neurons: MLPs whose neurons are scored, too.
            steps: points at which the gradient of attributions is taken.
            statistics: names of what is computed.
        """
        self._decoder, self._components = decoder, components
        #: Points that are run: without anything to integrate, the prompt alone.
        self._steps = steps if edges or neurons or ATTRIBUTION in statistics else 1
        self._with_edges, self._neurons, self._statistics = edges, neurons, statistics
        #: Whether anything is compared with a counterfactual or partner.
        self.compares = edges or bool(neurons) or not set(COMPARED).isdisjoint(statistics)
        names = recorded(decoder) if edges else ()
        known = known_in(decoder.spec.n_layers) if self.compares else ()
        self._options = Options(
            rules=RULES[rules], graph=True, keep=self._steps > 1, record={*names, *known}, edges=edges
        )
        self._other_options = Options(keep=True, record=names)

    def run(self, packed: Packed) -> Run:
        """The forward pass over prompts."""
        return self._decoder.run(packed, self._options)

    def scores(
        self, run: Run, others: Packed | None, means: Mapping[str, Reference], losses: Sequence[LossGradient]
    ) -> list[Scores]:
        """Scores of a run, one for each loss.

        Args:
            run: of `run`.
            others: what the prompts are compared with; None where there is nothing.
            means: further references, by the name that statistics have for them.
            losses: what is passed back.
        """
        table, other = self._decoder.token_table, None if others is None else self._other(run, others)
        references = means if other is None else {**means, "other": RunReference(other, table)}
        sources = EdgeSources(self._decoder, run, other) if self._with_edges and other is not None else None
        found = [self._back(run, sources, references, loss, self._statistics) for loss in losses]
        if other is None or self._steps == 1:
            return found
        start, end = self._decoder.embed(other.packed), self._decoder.embed(run.packed)
        start = aligned(start, run.packed.positions, at_answers=False)
        way = {"other": RunReference(other, table, run)}
        for step in range(1, self._steps):
            at = self._decoder.run(run.packed, self._options, Start(0, torch.lerp(start, end, step / self._steps)))
            # nodes write what they write on the prompt; only the gradient is of this point
            points = [self._back(at, sources, way, loss, {ATTRIBUTION} & set(self._statistics)) for loss in losses]
            found = [_added(one, point) for one, point in zip(found, points, strict=True)]
        return [_divided(one, self._steps) for one in found]

    def _other(self, run: Run, packed: Packed) -> Run:
        """The forward pass over what the prompts of `run` are compared with, without a graph.

        Where each prompt is one sequence of a causal model, it is over the tokens from the first difference on.
        """
        if not self._decoder.spec.causal or run.packed.positions.stride(0) != 0:
            return self._decoder.run(packed, self._other_options)
        return tail_run(self._decoder, self._other_options, columns_of(packed, run.packed), run.values)

    def _back(
        self,
        run: Run,
        sources: EdgeSources | None,
        references: Mapping[str, Reference],
        loss: LossGradient,
        names: Collection[str],
    ) -> Scores:
        wanted = [one for one in STATISTICS if one.name in names]
        table = ScoreTable(self._components, len(run.logits), references, wanted)
        receivers: list[Callable[[Gradient], None]] = [table]
        edges = neurons = None
        if sources is not None:
            receivers.append(edges := EdgeScores(self._decoder, run, sources))
        if "other" in references and self._neurons:
            receivers.append(neurons := NeuronScores(self._neurons, references["other"]))

        def receive(gradient: Gradient) -> None:
            for receiver in receivers:
                receiver(gradient)

        run.backward(loss(run), receive)
        many = {} if neurons is None else {node: neurons.values[node] for node in self._neurons}
        return Scores(table.values(), many if edges is None else {EDGES: edges.values(), **many})


def _added(total: Scores, point: Scores) -> Scores:
    """The sum of what a point has; the rest as it is."""
    statistics = {name: total.statistics[name] + values for name, values in point.statistics.items()}
    many = {name: total.many[name] + values for name, values in point.many.items()}
    return Scores({**total.statistics, **statistics}, many)


def _divided(total: Scores, steps: int) -> Scores:
    statistics = {name: one / steps if name == ATTRIBUTION else one for name, one in total.statistics.items()}
    return Scores(statistics, {name: values / steps for name, values in total.many.items()})
