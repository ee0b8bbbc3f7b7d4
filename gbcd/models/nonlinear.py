"""What lies between maps and norms: softmax and activations, with the backward rules of `rules.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

aten = torch.ops.aten


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Float[Tensor, "*rows pos"], temperature: float) -> Float[Tensor, "*rows pos"]:
        pattern = scores.softmax(-1)
        # an output without its way back to this node: kept with it, the whole pass would stay in memory for ever
        ctx.backward_pattern = pattern.detach() if temperature == 1.0 else (scores / temperature).softmax(-1)
        return pattern

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None]:
        (d,) = grad_outputs
        pattern = ctx.backward_pattern
        # Softmax does not see a shift. Taken at the largest p, it leaves the digits of a head that is nearly certain
        # in the sum, where `1 - p` would have lost them.
        d = d - d.gather(-1, pattern.argmax(-1, keepdim=True))
        return aten._softmax_backward_data(d, pattern, -1, pattern.dtype), None


def softmax(scores: Float[Tensor, "*rows pos"], temperature: float) -> Float[Tensor, "*rows pos"]:
    """Softmax whose gradient keeps the digits of nearly certain rows; `temperature` is that of the way back."""
    return cast(Tensor, _Softmax.apply(scores, temperature))


def passed(x: Tensor, share: float) -> Tensor:
    """`x`, of whose gradient only `share` is passed back."""
    return x if share == 1.0 else x * share + (x * (1 - share)).detach()


def activated(x: Float[Tensor, "*rows d"], name: str, fixed: bool) -> Float[Tensor, "*rows d"]:
    """The activation function `name`; `fixed`: as multiplication by the constant `act(x) / x`."""
    act = ACTIVATIONS[name]
    if not fixed:
        return act(x)
    with torch.no_grad():
        tiny = torch.finfo(x.dtype).tiny
        ratio = torch.where(x.abs() > tiny, act(x) / x, act(x.new_full((), 1e-3)) / 1e-3)
    return x * ratio


def _gelu_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


#: The library's names of activation functions.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "relu": functional.relu,
    "silu": functional.silu,
    "swish": functional.silu,
}
