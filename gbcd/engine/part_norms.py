"""One backward pass of a batch to a table of units x components: each tap becomes numbers and is let go.

Values arrive tap by tap in the order of the backward pass and are put in columns in the order of the components.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gbcd.component import Component
from gbcd.engine import embedding_norms, gram
from gbcd.engine.mean_inputs import MeanInputs
from gbcd.models.taps import EmbeddingTap, GainTap, InputRows, LinearTap, Tap


class BatchMeans(NamedTuple):
    """Mean inputs, and the group of each unit of the batch."""

    means: MeanInputs
    groups: Int[Tensor, " unit"]


class PartNorms(NamedTuple):
    """Statistics of a batch for one wrong answer; columns are components in canonical order.

    Attributes:
        squares: squared gradient norm of each unit.
        centered_squares: the same with centred inputs; None where no means were given.
        taylor: `<W, G>` of each unit.
        summed_squares: squared norm of the gradient summed over the batch (coherence).
    """

    squares: Float[Tensor, "unit component"]
    centered_squares: Float[Tensor, "unit component"] | None
    taylor: Float[Tensor, "unit component"]
    summed_squares: Float[Tensor, " component"]


def all_statistics(
    taps: Iterable[Tap], components: Sequence[Component], n_units: int, centering: BatchMeans | None
) -> PartNorms:
    """Every statistic of every component, from the taps of one backward pass."""
    table = _Table(components, n_units)
    squares = _Squares()
    for tap in taps:
        table.put("squares", squares.of(tap))
        table.put("taylor", squares.taylor(tap))
        table.put("summed", squares.summed(tap))
        if centering is not None:
            table.put("centered", squares.centered(tap, centering))
    centered = None if centering is None else table.values("centered")
    return PartNorms(table.values("squares"), centered, table.values("taylor"), table.values("summed")[0])


def circuit_norms(
    taps: Iterable[Tap], components: Sequence[Component], n_units: int
) -> Float[Tensor, "unit component"]:
    """Squared norms of the parts of heads and MLPs alone, and no more of the backward pass than they need."""
    wanted = sum(component.is_circuit_part for component in components)
    table, squares, found = _Table(components, n_units), _Squares(), 0
    for tap in taps:
        if isinstance(tap, LinearTap):
            table.put("squares", squares.of(tap))
            found += len(tap.components)
        if found == wanted:
            break
    return table.values("squares")


class _Table:
    """Collects columns by component name."""

    def __init__(self, components: Sequence[Component], n_units: int) -> None:
        self._column = {component.name: index for index, component in enumerate(components)}
        self._n_units = n_units
        self._pieces: dict[str, list[tuple[tuple[str, ...], Tensor]]] = {}

    def put(self, statistic: str, values: Mapping[tuple[str, ...], Tensor]) -> None:
        self._pieces.setdefault(statistic, []).extend(values.items())

    def values(self, statistic: str) -> Float[Tensor, "unit component"]:
        pieces = self._pieces[statistic]
        found = torch.cat([values for _, values in pieces], 1)
        columns = [self._column.get(name) for names, _ in pieces for name in names]
        table = found.new_full((len(found), len(self._column)), torch.nan)
        kept = [index for index, column in enumerate(columns) if column is not None]
        table[:, [columns[index] for index in kept]] = found[:, kept]
        return table


class _Squares:
    """Statistics of one tap after another; what several of them need is computed once and let go with the next tap."""

    def __init__(self) -> None:
        self._input_gram: _Kept | None = None
        self._gradient_gram: _Kept | None = None
        self._gain_gradients: _Kept | None = None

    def of(self, tap: Tap) -> dict[tuple[str, ...], Float[Tensor, "unit slice"]]:
        if isinstance(tap, LinearTap):
            return {tap.components: self._linear(tap, None)}
        if isinstance(tap, GainTap):
            return {(tap.component,): self._of_gain(tap).square().sum(1, keepdim=True)}
        return _columns(embedding_norms.raw_squares(tap))

    def centered(self, tap: Tap, centering: BatchMeans) -> dict[tuple[str, ...], Float[Tensor, "unit slice"]]:
        means, groups = centering
        if isinstance(tap, EmbeddingTap):
            return _columns(embedding_norms.centered_squares(tap, means, groups))
        x = gram.widened(tap.input.x) - means.of(tap.input, groups)
        if isinstance(tap, LinearTap):
            return {tap.components: self._linear(tap, x)}
        return {(tap.component,): _gain_gradients(tap, x).square().sum(1, keepdim=True)}

    def taylor(self, tap: Tap) -> dict[tuple[str, ...], Float[Tensor, "unit slice"]]:
        if isinstance(tap, LinearTap):
            a, b = tap.taylor_pair()
            return {tap.components: gram.inner_products(gram.widened(a), gram.widened(b), len(tap.components))}
        if isinstance(tap, GainTap):
            return {(tap.component,): (self._of_gain(tap) @ gram.widened(tap.gain)).unsqueeze(1)}
        return _columns(embedding_norms.taylor_scores(tap))

    def summed(self, tap: Tap) -> dict[tuple[str, ...], Float[Tensor, "one slice"]]:
        if isinstance(tap, LinearTap):
            x, d = gram.widened(tap.input.x), gram.widened(tap.d)
            return {tap.components: gram.summed_squares(x, d, len(tap.components), tap.axis).unsqueeze(0)}
        if isinstance(tap, GainTap):
            return {(tap.component,): self._of_gain(tap).sum(0).square().sum().view(1, 1)}
        return _columns(embedding_norms.summed_squares(tap))

    def _linear(self, tap: LinearTap, centered: Float[Tensor, "unit pos d_in"] | None) -> Float[Tensor, "unit slice"]:
        n, d = len(tap.components), gram.widened(tap.d)
        x = gram.widened(tap.input.x) if centered is None else centered
        if gram.materialising_pays(x.shape[1], x.shape[2], d.shape[2]):
            return gram.materialised_squares(x, d, n, tap.axis)
        if n > 1 and tap.axis == "in":
            return gram.slice_squares(self._gram_of_gradients(tap), x, n)
        of_input = self._gram_of_input(tap.input) if centered is None else gram.gram(centered)
        if n > 1:
            return gram.slice_squares(of_input, d, n)
        return (of_input * self._gram_of_gradients(tap)).sum((1, 2)).unsqueeze(1)

    def _gram_of_input(self, rows: InputRows) -> Float[Tensor, "unit pos pos"]:
        if self._input_gram is None or self._input_gram.owner is not rows:
            self._input_gram = _Kept(rows, gram.gram(gram.widened(rows.x)))
        return self._input_gram.value

    def _gram_of_gradients(self, tap: LinearTap) -> Float[Tensor, "unit pos pos"]:
        if self._gradient_gram is None or self._gradient_gram.owner is not tap:
            self._gradient_gram = _Kept(tap, gram.gram(gram.widened(tap.d)))
        return self._gradient_gram.value

    def _of_gain(self, tap: GainTap) -> Float[Tensor, "unit d"]:
        if self._gain_gradients is None or self._gain_gradients.owner is not tap:
            self._gain_gradients = _Kept(tap, _gain_gradients(tap, gram.widened(tap.input.x)))
        return self._gain_gradients.value


class _Kept(NamedTuple):
    owner: object
    value: Tensor


def _gain_gradients(tap: GainTap, x: Float[Tensor, "unit pos width"]) -> Float[Tensor, "unit d"]:
    # heads that share a gain lie side by side
    return (x * gram.widened(tap.d)).sum(1).unflatten(1, (-1, len(tap.gain))).sum(1)


def _columns(values: embedding_norms.EmbeddingSquares) -> dict[tuple[str, ...], Tensor]:
    return {(name,): value.reshape(-1, 1) for name, value in values.named().items()}
