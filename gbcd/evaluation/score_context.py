"""What a score may read: some prompts of one task, and passes over them that several scores share.

With a the value of a component, a' its value in the counterfactual (or partner), and g the gradient of the task's
metric by a, an attribution is `(a - a') . g`, summed over positions. The gradient is that of `rules`, averaged over
`steps` points k/steps of the way of the embeddings from the counterfactual to the prompt (Hanna et al. 2024, arXiv
2403.17806). Edges likewise (`gbcd.engine.edges`). All are positive where the component helps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gbcd.component import Component
from gbcd.engine.edges import EdgeScores, recorded
from gbcd.engine.engine import packed_for
from gbcd.engine.references import RunReference
from gbcd.engine.scores import ScoreTable, Statistic
from gbcd.evaluation.metrics import Metric, metric_gradient
from gbcd.evaluation.places import Place
from gbcd.models.captured import EmbeddingGradient, Gradient, InputRows, MapGradient
from gbcd.models.decoder import Decoder, Run, Start
from gbcd.models.forward import Options
from gbcd.models.load import LoadedModel
from gbcd.models.packing import Packed
from gbcd.models.rules import RULES, RulesName
from gbcd.prompting.tokens import EncodedPrompt

_CHANGE, _VALUE = Statistic("change", "other", False), Statistic("value", None, False)


class Attributed(NamedTuple):
    """What one backward pass (or several, averaged) gives.

    Attributes:
        change: `(a - a') . g` of each component; None where prompts have nothing to be compared with.
        value: `a . g`.
        edges: of each edge; None where they were not asked for.
    """

    change: Float[Tensor, "prompt component"] | None
    value: Float[Tensor, "prompt component"]
    edges: Float[Tensor, "prompt edge"] | None


class ScoreContext:
    """Some prompts of one task.

    Attributes:
        loaded: the model.
        prompts: rows of what is computed for each prompt.
        components: heads, groups and MLPs, or their parts: what values are wanted for, in this order.
        places: where the values of `components` lie in a run of `loaded.decoder`.
        rng: for what is drawn; the same for all prompts.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        prompts: Sequence[EncodedPrompt],
        components: Sequence[Component],
        places: Sequence[Place],
        metric: Metric,
        seed: int = 0,
        with_edges: bool = False,
    ) -> None:
        """Nothing runs yet; `metric` takes rows of `prompts`."""
        self.loaded, self.prompts, self.components, self.places = loaded, prompts, components, places
        self.rng = np.random.default_rng(seed)
        self._metric, self._with_edges = metric, with_edges
        self._found: dict[tuple[RulesName, int], Attributed] = {}
        self._d_hidden: Tensor | None = None

    @cached_property
    def packed(self) -> Packed:
        """The prompts, laid out for the model."""
        return packed_for(self.loaded, [(prompt.ids,) for prompt in self.prompts])

    @cached_property
    def packed_references(self) -> Packed | None:
        """Their counterfactuals or partners; None where one of them has neither."""
        references = [prompt.reference_ids for prompt in self.prompts]
        return None if None in references else packed_for(self.loaded, [(ids or (),) for ids in references])

    def attributed(self, rules: RulesName = "plain", steps: int = 1) -> Attributed:
        """Attributions by backward rules; computed once."""
        if (rules, steps) not in self._found:
            found = self._attributed(rules, steps)
            self._found[rules, steps] = found
        return self._found[rules, steps]

    def direct_effects(self) -> Float[Tensor, "prompt component"]:
        """What nodes add to the metric through the residual stream alone, with the statistics of norms held fixed.

        It is `a . f` at the answer: f is the gradient of the metric by the final residual stream, passed back through
        the final norm as if its statistics were constants, and a what the node adds to that stream. For the logit
        difference this is direct logit attribution. Groups of heads write to their heads: theirs is zero.
        """
        decoder, names = self.loaded.decoder, {place.value for place in self.places}
        run = decoder.run(self.packed, Options(record=names, edges=True))
        self.attributed()
        assert self._d_hidden is not None
        direction, norm = self._d_hidden, decoder.final_norm
        if norm is not None:
            x = run.trace.sources[norm.component]
            _, mean, rstd = norm(x)
            direction = norm.back(direction, x, mean, rstd, fixed=True)
        effects = {name: torch.einsum("prsd,prd->ps", _written(decoder, run, name), direction) for name in names}
        return torch.stack([effects[place.value][:, place.slice] for place in self.places], 1)

    def _attributed(self, rules: RulesName, steps: int) -> Attributed:
        decoder, others = self.loaded.decoder, self.packed_references
        with_edges = self._with_edges and others is not None
        names = recorded(decoder) if with_edges else ()
        options = Options(rules=RULES[rules], graph=True, keep=True, record=names, edges=with_edges)
        run = decoder.run(self.packed, options)
        other = None if others is None else decoder.run(others, Options(keep=True, record=names))
        change = None if other is None else _Change(decoder, run, other)
        total = self._passed_back(run, change, other if with_edges else None)
        for step in range(1, steps):
            assert others is not None
            start = Start(0, torch.lerp(decoder.embed(others), decoder.embed(self.packed), step / steps))
            one = decoder.run(
                self.packed, Options(rules=RULES[rules], graph=True, record=names, edges=with_edges), start
            )
            # nodes write what they write on the prompt; only the gradient is of the way
            one.values.update(run.values)
            found = self._passed_back(one, change, other if with_edges else None)
            total = Attributed(*(None if a is None or b is None else a + b for a, b in zip(total, found, strict=True)))  # pyright: ignore[reportArgumentType]
        return Attributed(*(None if one is None else one / steps for one in total))  # pyright: ignore[reportArgumentType]

    def _passed_back(self, run: Run, change: RunReference | None, other: Run | None) -> Attributed:
        statistics = (_VALUE,) if change is None else (_VALUE, _CHANGE)
        references = {} if change is None else {"other": change}
        table = ScoreTable(self.loaded.components, len(self.prompts), references, statistics)
        edges = None if other is None else EdgeScores(self.loaded.decoder, run, other)

        def receive(gradient: Gradient) -> None:
            if isinstance(gradient, MapGradient):
                table(gradient)
            elif isinstance(gradient, EmbeddingGradient):
                self._d_hidden = gradient.d_hidden
            if edges is not None:
                edges(gradient)

        run.backward(metric_gradient(self._metric, run, list(range(len(self.prompts)))), receive)
        index = {component.name: number for number, component in enumerate(self.loaded.components)}
        found = {
            name: values[:, [index[place.part] for place in self.places]] for name, values in table.values().items()
        }
        return Attributed(found.get("change"), found["value"], None if edges is None else edges.values())


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


def _written(decoder: Decoder, run: Run, name: str) -> Float[Tensor, "prompt seq slice d_model"]:
    """What the slices of a value add to the residual stream at the answers."""
    value = run.values[name]
    if value.shape[1] != run.packed.answers.shape[1]:
        value = run.packed.at_answers(value.flatten(2)).unflatten(2, value.shape[2:])
    block, part = name.split(".")
    if part == "out":
        return value
    if part == "v":
        return value.new_zeros(*value.shape[:3], decoder.spec.d_model)
    return decoder.written_by_heads(int(block[1:]), value)
