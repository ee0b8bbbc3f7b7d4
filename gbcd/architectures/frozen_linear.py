"""The library's linear maps, their weights frozen, computed by the fastest kernel forward and back.

`nn.Linear` takes the kernel that torch prefers; `products.linear` knows a faster one for float32 on processors, through
which no gradient flows by itself. With frozen weights the gradient that is needed is one more product.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gbcd.architectures.products import linear


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return linear(x, weight.T, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        return linear(gradients[0], ctx.weight), None, None


@contextmanager
def frozen_linear(modules: Iterable[nn.Module]) -> Generator[None]:
    """Within this context those of `modules` that are plain `nn.Linear` run through `products.linear`."""
    with ExitStack() as stack:
        for module in modules:
            if type(module) is nn.Linear:
                module.forward = partial(_forward, module)
                stack.callback(delattr, module, "forward")
        yield


def _forward(module: nn.Linear, input: Tensor) -> Tensor:
    return _Product.apply(input, module.weight, module.bias)  # pyright: ignore[reportReturnType]
