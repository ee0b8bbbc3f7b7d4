"""From one backward pass of a batch to a table of examples x components: every gradient becomes numbers and is let go.

Every score is one expression. For a linear map `Y = X W` of a prompt, a loss, D its gradient by Y, and a reference X':

    G = (X - X')^T D        norm: ||G||_F        attribution: <W, G> = sum_t ((X - X') W)_t . D_t

with X' zero, the mean of the prompt's template at the position, or the counterfactual. `||G||` says how hard the loss
pulls at the weights by what is particular to the prompt; `<W, G>` estimates, to first order, how the loss would change
if the map's input went back to the reference. Of a head's output map against the counterfactual it is attribution
patching (Nanda 2023; Syed et al. 2023, arXiv 2310.10348), since the map has done its work; against zero it is gradient
times weight (Michel et al. 2019, arXiv 1905.10650).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gbcd.component import Component
from gbcd.engine import embedding_scores, gram
from gbcd.engine.references import Reference, last
from gbcd.models.captured import EmbeddingGradient, Gradient, InputRows, MapGradient, NormGradient

#: Columns of values by component name, as one gradient gives them.
Columns = dict[tuple[str, ...], Float[Tensor, "example slice"]]


class Statistic(NamedTuple):
    """What is computed: a norm or an attribution, against the reference of that name; None is zero."""

    name: str
    reference: str | None
    is_norm: bool


#: Every statistic, as the tables name it.
STATISTICS = (
    Statistic("grad_norm", None, True),
    Statistic("centered_grad_norm", "mean", True),
    Statistic("contrast_norm", "other", True),
    Statistic("taylor", None, False),
    Statistic("mean_attribution", "mean", False),
    Statistic("attribution", "other", False),
)


class ScoreTable:
    """Receives the gradients of one backward pass (`Run.backward`) and makes the table of every statistic."""

    def __init__(
        self,
        components: Sequence[Component],
        n_examples: int,
        references: Mapping[str, Reference],
        statistics: Sequence[Statistic] = STATISTICS,
    ) -> None:
        """Statistics whose reference is not in `references` are left out."""
        self._column = {component.name: index for index, component in enumerate(components)}
        self._n_examples = n_examples
        self._references = references
        self._statistics = [one for one in statistics if one.reference is None or one.reference in references]
        self._pieces: dict[str, list[tuple[tuple[str, ...], Tensor]]] = {one.name: [] for one in self._statistics}
        self._inputs: dict[tuple[int, str | None], _Input] = {}
        self._owner: InputRows | None = None

    def __call__(self, gradient: Gradient) -> None:
        """Take in one gradient."""
        by_reference: dict[str | None, Reference | None] = {None: None, **self._references}
        shared: dict[str, Tensor] = {}
        for one in self._statistics:
            reference = by_reference[one.reference]
            if isinstance(gradient, EmbeddingGradient):
                found = embedding_scores.squares if one.is_norm else embedding_scores.attributions
                columns = found(gradient, reference)
            elif isinstance(gradient, NormGradient):
                columns = self._of_norm(gradient, one, reference, shared)
            elif one.is_norm:
                columns = {gradient.components: self._squares(gradient, one.reference, reference, shared)}
            else:
                columns = {gradient.components: self._attribution(gradient, one.reference, reference)}
            self._pieces[one.name].extend(columns.items())

    def values(self) -> dict[str, Float[Tensor, "example component"]]:
        """Norms and attributions by name of the statistic; columns are components in their order."""
        found: dict[str, Tensor] = {}
        for one in self._statistics:
            table = self._assembled(self._pieces[one.name])
            found[one.name] = table.clamp(min=0).sqrt() if one.is_norm else table
        return found

    def _assembled(self, pieces: Sequence[tuple[tuple[str, ...], Tensor]]) -> Float[Tensor, "example component"]:
        values = torch.cat([columns for _, columns in pieces], 1)
        index = [self._column.get(name) for names, _ in pieces for name in names]
        table = values.new_full((self._n_examples, len(self._column)), torch.nan)
        kept = [position for position, column in enumerate(index) if column is not None]
        table[:, [index[position] for position in kept]] = values[:, kept]
        return table

    def _input(self, rows: InputRows, name: str | None, reference: Reference | None) -> _Input:
        """The compared input of maps; of those that read the same one, the first makes it and its Gram."""
        if self._owner is not rows:
            self._owner, self._inputs = rows, {}
        key = id(rows), name
        if key not in self._inputs:
            self._inputs[key] = _Input(gram.widened(rows.x if reference is None else reference.difference(rows)))
        return self._inputs[key]

    def _squares(
        self, gradient: MapGradient, name: str | None, reference: Reference | None, shared: dict[str, Tensor]
    ) -> Float[Tensor, "example slice"]:
        n, one = len(gradient.components), self._input(gradient.input, name, reference)
        n_positions = one.x.shape[1]
        d = last(gram.widened(gradient.d_output), n_positions)
        if gram.materialising_pays(d.shape[1], one.x.shape[2], d.shape[2]):
            return gram.materialised_squares(one.x, d, n, gradient.axis)
        if n > 1 and gradient.axis == "out":
            return gram.slice_squares(one.gram(), d, n)
        if "gram" not in shared:
            shared["gram"] = gram.gram(gram.widened(gradient.d_output))
        own = last(last(shared["gram"], n_positions).mT, n_positions)
        if n > 1:
            return gram.slice_squares(own, one.x, n)
        return (one.gram() * own).sum((1, 2)).unsqueeze(1)

    def _attribution(
        self, gradient: MapGradient, name: str | None, reference: Reference | None
    ) -> Float[Tensor, "example slice"]:
        if gradient.output is None:
            # the inner product with D W^T is the same, and what is compared of the input is there already
            x = self._input(gradient.input, name, reference).x
            d_input = last(gradient.d_input, x.shape[1])
            return gram.inner_products(x, gram.widened(d_input), len(gradient.components))
        y = gradient.output if reference is None else reference.output_difference(gradient)
        d_output = last(gradient.d_output, y.shape[1])
        return gram.inner_products(gram.widened(y), gram.widened(d_output), len(gradient.components))

    def _of_norm(
        self, gradient: NormGradient, one: Statistic, reference: Reference | None, shared: dict[str, Tensor]
    ) -> Columns:
        name = f"weight against {one.reference}"
        if name not in shared:
            x = self._input(gradient.input, one.reference, reference).x
            # heads that share a norm lie side by side
            by_weight = (x * gram.widened(last(gradient.d_output, x.shape[1]))).sum(1)
            shared[name] = by_weight.unflatten(1, (-1, len(gradient.weight))).sum(1)
        value = shared[name].square().sum(1) if one.is_norm else shared[name] @ gram.widened(gradient.weight)
        return {(gradient.component,): value.unsqueeze(1)}


class _Input:
    def __init__(self, x: Float[Tensor, "example pos d_in"]) -> None:
        self.x = x
        self._gram: Tensor | None = None

    def gram(self) -> Float[Tensor, "example pos pos"]:
        if self._gram is None:
            self._gram = gram.gram(self.x)
        return self._gram
