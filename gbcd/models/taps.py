"""What a pass through a model hands to the mathematics: the inputs and output gradients of every tapped map.

Two passes give these records. `hooked_pass.py` taps the modules of any model that an architecture file describes;
`gpt2_pass.py` is GPT-2's own and takes a tenth to a fifth less time (`docs/speed.md`). Both are one forward pass,
after which any number of backward passes can be asked for, one for each wrong answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from gbcd.component import Axis
from gbcd.models.units import Sequences


class InputRows(NamedTuple):
    """An input of tapped maps, for some or all tokens of each unit: its name, values and the tokens' positions.

    Positions that are the same in all units may share one row of memory (stride 0), which saves looking up their means.
    """

    name: str
    x: Float[Tensor, "unit pos d_in"]
    positions: Int[Tensor, "unit pos"]


class LinearTap(NamedTuple):
    """One linear map, or some of its slices.

    Attributes:
        components: names of the slices, in order.
        axis: which side is sliced.
        input: what the map reads. Taps of one backward pass that read the same rows carry the same object.
        d: gradients of the loss by the map's outputs, bias included.
        taylor_pair: gives two tensors whose inner product, slice by slice, is `<W, G>`: either inputs and their
            gradients, or outputs less bias and their gradients. A function, since it costs time and not everyone asks.
    """

    components: tuple[str, ...]
    axis: Axis
    input: InputRows
    d: Float[Tensor, "unit pos d_out"]
    taylor_pair: Callable[[], tuple[Float[Tensor, "unit pos width"], Float[Tensor, "unit pos width"]]]


class GainTap(NamedTuple):
    """The gain of a norm: normalised inputs, gradients of the outputs, the gain itself.

    The width is `d`, or a multiple of it where heads share the gain.
    """

    component: str
    input: InputRows
    d: Float[Tensor, "unit pos width"]
    gain: Float[Tensor, " d"]


class EmbeddingTap(NamedTuple):
    """Embedding and unembedding together, since a tied matrix needs both.

    Attributes:
        ids: tokens.
        positions: their positions.
        token_rows: rows of the token embedding that `ids` picks, as they are stored.
        position_rows: rows of the table of positions, or None.
        d: gradients of the loss by those rows, token's or position's.
        hidden: what the unembedding reads.
        d_hidden: gradients of the loss by it.
        d_logits: gradients of the loss by the logits.
        tied: whether embedding and unembedding are one matrix.
    """

    ids: Int[Tensor, "unit pos"]
    positions: Int[Tensor, "unit pos"]
    token_rows: Float[Tensor, "unit pos d_model"]
    position_rows: Float[Tensor, "unit pos d_model"] | None
    d: Float[Tensor, "unit pos d_model"]
    hidden: InputRows
    d_hidden: Float[Tensor, "unit seq d_model"]
    d_logits: Float[Tensor, "unit seq vocab"]
    tied: bool


Tap = LinearTap | GainTap | EmbeddingTap


@runtime_checkable
class ForwardPass(Protocol):
    """The activations of a batch, from which backward passes start.

    Attributes:
        logits: at the last token of every sequence of every unit, or at every token of models that answer at each,
            without graph.
    """

    logits: Float[Tensor, "unit seq vocab"]

    def inputs(self) -> Iterator[InputRows]:
        """Every input of tapped maps, once each, for all tokens that the pass computed."""
        ...

    def backward(self, d_logits: Float[Tensor, "unit seq vocab"]) -> Iterator[Tap]:
        """Run back from `d_logits` and hand out taps on the way.

        `d_logits` may cover only the first of several sequences (`seq` = 1): the pass is then restricted to it.
        """
        ...


@runtime_checkable
class ModelPass(Protocol):
    """A model that can be run on batches of units."""

    def forward(self, units: Sequence[Sequences], every_token: bool = False) -> ForwardPass:
        """Run the model on `units`; `every_token` keeps all tokens in the last block too, as calibration needs."""
        ...
