"""What a score may read: some prompts of one task, and passes over them that several scores share.

With a the value of a component, a' its value in the counterfactual (or partner), and g the gradient of the task's
metric by a, an attribution is `(a - a') . g`, summed over positions: the `attribution` of a study, whose code computes
it (`gbcd.engine.passes`), of the loss that the metric is. All are positive where the component helps.
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
from gbcd.engine.engine import packed_for
from gbcd.engine.passes import Passes
from gbcd.engine.tables import EDGES
from gbcd.evaluation.metrics import Metric, metric_gradient
from gbcd.evaluation.places import Place
from gbcd.models.decoder import Decoder, Run
from gbcd.models.forward import Options
from gbcd.models.load import LoadedModel
from gbcd.models.packing import Packed
from gbcd.models.rules import RulesName
from gbcd.prompting.tokens import EncodedPrompt

_READ = ("taylor", "attribution")


class Attributed(NamedTuple):
    """What one backward pass (or several, averaged) gives.

    Attributes:
        change: `(a - a') . g` of each component; None where prompts have nothing to be compared with.
        value: `a . g`, g on the prompt.
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
        components: heads and MLPs, or their parts: what values are wanted for, in this order.
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
        difference this is direct logit attribution.
        """
        decoder, names = self.loaded.decoder, {place.value for place in self.places}
        run = decoder.run(self.packed, Options(record=names, edges=True))
        direction, norm = run.by_hidden(self._d_logits(run)), decoder.final_norm
        if norm is not None:
            x = run.trace.sources[norm.component]
            _, mean, rstd = norm(x)
            direction = norm.back(direction, x, mean, rstd, fixed=True)
        effects = {name: torch.einsum("prsd,prd->ps", _written(decoder, run, name), direction) for name in names}
        return torch.stack([effects[place.value][:, place.slice] for place in self.places], 1)

    def _attributed(self, rules: RulesName, steps: int) -> Attributed:
        parts = self.loaded.components
        passes = Passes(self.loaded.decoder, parts, rules, self._with_edges, steps=steps, statistics=_READ)
        (found,) = passes.scores(passes.run(self.packed), self.packed_references, {}, [self._d_logits])
        index = {component.name: number for number, component in enumerate(parts)}
        columns = [index[place.part] for place in self.places]
        chosen = {name: values[:, columns] for name, values in found.statistics.items()}
        return Attributed(chosen.get("attribution"), chosen["taylor"], found.many.get(EDGES))

    def _d_logits(self, run: Run) -> Float[Tensor, "prompt seq vocab"]:
        return metric_gradient(self._metric, run, list(range(len(self.prompts))))


def _written(decoder: Decoder, run: Run, name: str) -> Float[Tensor, "prompt seq slice d_model"]:
    """What the slices of a value add to the residual stream at the answers."""
    value = run.values[name]
    if value.shape[1] != run.packed.answers.shape[1]:
        value = run.packed.at_answers(value.flatten(2)).unflatten(2, value.shape[2:])
    block, part = name.split(".")
    if part == "out":
        return value
    return decoder.written_by_heads(int(block[1:]), value)
