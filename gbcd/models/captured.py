"""What a pass through a model hands to the mathematics: inputs, outputs and gradients of every map and norm."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from gbcd.component import Axis


class InputRows(NamedTuple):
    """An input of maps, for some or all tokens of each example: its name, values and the tokens' positions.

    Positions that are the same in all examples may share one row of memory (stride 0), which saves looking up means.
    `at_answers`: the rows are the tokens at the answers.
    """

    name: str
    x: Float[Tensor, "example pos d_in"]
    positions: Int[Tensor, "example pos"]
    at_answers: bool = False


class MapGradient(NamedTuple):
    """A linear map in a backward pass.

    Attributes:
        components: names of its slices, in order.
        axis: which side is sliced.
        input: what the map reads; maps that read the same tensor carry the same object.
        output: `X W`, bias left out, of a map with several slices of its output; None of others.
        d_output: gradient of the loss by the map's output.
        d_input: gradient by its input, through this map alone.
        weight: `W`.
    """

    components: tuple[str, ...]
    axis: Axis
    input: InputRows
    output: Float[Tensor, "example pos d_out"] | None
    d_output: Float[Tensor, "example pos d_out"]
    d_input: Float[Tensor, "example pos d_in"]
    weight: Float[Tensor, "d_in d_out"]


class NormGradient(NamedTuple):
    """The weight of a norm in a backward pass: normalised inputs, gradient of the output, the weight with its offset.

    The width is `d`, or a multiple of it where heads share the norm.
    """

    component: str
    input: InputRows
    d_output: Float[Tensor, "example pos width"]
    weight: Float[Tensor, " d"]


class EmbeddingGradient(NamedTuple):
    """Embedding and unembedding together, since a tied matrix needs both.

    Attributes:
        ids: tokens.
        positions: their positions.
        token_rows: rows of the token embedding that `ids` picks, as they are stored.
        position_rows: rows of the table of positions, or None.
        d_rows: gradient of the loss by those rows, token's or position's.
        hidden: what the unembedding reads.
        d_hidden: gradient of the loss by it.
        d_logits: gradient of the loss by what the unembedding writes (before a cap).
        tied: whether embedding and unembedding are one matrix.
        scale: what rows of the token embedding are multiplied by.
    """

    ids: Int[Tensor, "example pos"]
    positions: Int[Tensor, "example pos"]
    token_rows: Float[Tensor, "example pos d_model"]
    position_rows: Float[Tensor, "example pos d_model"] | None
    d_rows: Float[Tensor, "example pos d_model"]
    hidden: InputRows
    d_hidden: Float[Tensor, "example seq d_model"]
    d_logits: Float[Tensor, "example seq vocab"]
    tied: bool
    scale: float


Gradient = MapGradient | NormGradient | EmbeddingGradient
