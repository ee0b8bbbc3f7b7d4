"""The pieces that a decoder is made of, each with its weights bound and its backward pass in sight.

Maps and norms are functions of their own for autograd, for two reasons: their weights need no gradient, and on the way
back each hands its tensors to whoever asked (`Trace.receive`) while they are still in cache. What lies between them is
plain torch (`forward.py`, `nonlinear.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gbcd.component import Axis
from gbcd.models.captured import Gradient, InputRows, MapGradient, NormGradient
from gbcd.models.rules import Rules
from gbcd.models.spec import MapSpec, NormSpec

aten = torch.ops.aten


def weight_of(module: nn.Module) -> Float[Tensor, "d_in d_out"]:
    """The weight of a linear module as `Y = X W` has it; the one place that knows how the library stores it."""
    weight = cast(Tensor, module.weight).detach()
    return weight if isinstance(module, Conv1D) else weight.T


@cache
def slices_by_part(components: tuple[str, ...]) -> dict[str, slice]:
    """Where the slices of each part lie: of interleaved queries, keys and values, `q` is every third."""
    found: dict[str, list[int]] = {}
    for index, name in enumerate(components):
        found.setdefault(name.rsplit(".", 1)[1], []).append(index)
    steps = {part: at[1] - at[0] if len(at) > 1 else 1 for part, at in found.items()}
    return {part: slice(at[0], at[-1] + 1, steps[part]) for part, at in found.items()}


@dataclass(frozen=True, slots=True)
class LinearMap:
    """A linear map with its weights; see `MapSpec`."""

    components: tuple[str, ...]
    axis: Axis
    weight: Float[Tensor, "d_in d_out"]
    bias: Float[Tensor, " d_out"] | None

    @staticmethod
    def of(model: nn.Module, spec: MapSpec) -> LinearMap:
        """The map of `spec`; its weights are the library's own tensors, not copies."""
        module = model.get_submodule(spec.module)
        bias = cast(Tensor | None, module.bias)
        return LinearMap(spec.components, spec.axis, weight_of(module), None if bias is None else bias.detach())

    @property
    def parts(self) -> dict[str, slice]:
        """Where the slices of each part lie."""
        return slices_by_part(self.components)

    def __call__(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        """Apply the map."""
        if self.bias is None:
            return x @ self.weight
        flat = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], -1)

    def sliced_output(self, output: Float[Tensor, "*rows d_out"]) -> Float[Tensor, "*rows d_out"] | None:
        """`X W` of an output `X W + b` that has several slices; None of others."""
        if self.axis == "in" or len(self.components) == 1:
            return None
        return output if self.bias is None else output - self.bias

    def back(self, d: Float[Tensor, "*rows d_out"]) -> Float[Tensor, "*rows d_in"]:
        """Gradient by the map's input, of a loss whose gradient by its output is `d`."""
        return d @ self.weight.T

    def slices(self, indices: list[int]) -> LinearMap:
        """The map of some of its output slices alone."""
        width = self.weight.shape[1] // len(self.components)
        names = tuple(self.components[index] for index in indices)
        if indices == list(range(indices[0], indices[0] + len(indices))):
            columns = slice(indices[0] * width, (indices[-1] + 1) * width)
            return LinearMap(
                names, self.axis, self.weight[:, columns], None if self.bias is None else self.bias[columns]
            )
        weight = self.weight.unflatten(1, (-1, width))[:, indices].flatten(1)
        bias = None if self.bias is None else self.bias.unflatten(0, (-1, width))[indices].flatten()
        return LinearMap(names, self.axis, weight, bias)


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm with its weights; see `NormSpec`. `scale` is the weight with its offset."""

    component: str
    kind: Literal["layer", "rms"]
    scale: Float[Tensor, " d"]
    bias: Float[Tensor, " d"] | None
    eps: float

    @staticmethod
    def of(model: nn.Module, spec: NormSpec) -> Norm:
        """The norm of `spec`."""
        module: Any = model.get_submodule(spec.module)
        bias = getattr(module, "bias", None)
        weight = module.weight.detach()
        scale = weight + spec.offset if spec.offset else weight
        # the library has two names for it
        eps = getattr(module, "variance_epsilon", None) or module.eps
        return Norm(spec.component, spec.kind, scale, None if bias is None else bias.detach(), float(eps))

    def inverse_deviation(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows 1"]:
        """What the input, less its mean for a layer norm, is multiplied by before the weight."""
        wide = x if x.dtype == torch.float64 else x.float()
        if self.kind == "layer":
            return torch.rsqrt(wide.var(-1, correction=0, keepdim=True) + self.eps)
        return torch.rsqrt(torch.linalg.vecdot(wide, wide).div_(x.shape[-1]).add_(self.eps)).unsqueeze(-1)

    def normalised(self, x: Float[Tensor, "*rows d"], rstd: Float[Tensor, "*rows 1"]) -> Float[Tensor, "*rows d"]:
        """What the weight multiplies."""
        return ((x - x.mean(-1, keepdim=True) if self.kind == "layer" else x) * rstd).to(x.dtype)

    def __call__(
        self, x: Float[Tensor, "*rows d"]
    ) -> tuple[Float[Tensor, "*rows d"], Float[Tensor, "*rows 1"] | None, Float[Tensor, "*rows 1"]]:
        """Output, mean (of a layer norm) and inverse deviation."""
        if self.kind == "layer":
            return torch.native_layer_norm(x, [x.shape[-1]], self.scale, self.bias, self.eps)
        rstd = self.inverse_deviation(x)
        # the library rounds to the model's type before it multiplies by the weight, Gemma after
        return (x * rstd).to(x.dtype).mul_(self.scale), None, rstd

    def back(
        self,
        d: Float[Tensor, "*rows d"],
        x: Float[Tensor, "*rows d"],
        mean: Float[Tensor, "*rows 1"] | None,
        rstd: Float[Tensor, "*rows 1"],
        fixed: bool,
    ) -> Float[Tensor, "*rows d"]:
        """Gradient by the norm's input; `fixed`: with its statistics as constants (the mean is linear, and stays)."""
        if self.kind == "layer":
            if not fixed:
                return aten.native_layer_norm_backward(
                    d.contiguous(), x, [x.shape[-1]], mean, rstd, self.scale, self.bias, [True, False, False]
                )[0]
            g = d * self.scale
            return g.sub_(g.mean(-1, keepdim=True)).mul_(rstd)
        g = d * self.scale
        if fixed:
            return g.mul_(rstd).to(x.dtype)
        along = torch.linalg.vecdot(g, x).unsqueeze(-1) * rstd**3 / -x.shape[-1]
        return torch.addcmul(g.mul_(rstd), x, along).to(x.dtype)


class KeptMap(NamedTuple):
    """Input and output of a map, of a run that keeps them; see `MapGradient`."""

    input: InputRows
    output: Float[Tensor, "example pos d_out"] | None


@dataclass(slots=True)
class Trace:
    """What a pass keeps, and who receives its gradients while it is passed back.

    Attributes:
        rules: by which it is passed back.
        keep: whether `maps` and `norms` are filled.
        maps: by the components of a map.
        norms: normalised inputs by the norm's component.
        keep_sources: whether `sources` is filled.
        sources: inputs of norms by the norm's component.
        shared: while it is passed back, gradients of keys (behind their norm) and values by name (`a3.k`), apart for
            every head of queries.
        receive: gets the gradients.
    """

    rules: Rules
    keep: bool = False
    maps: dict[tuple[str, ...], KeptMap] = field(default_factory=dict[tuple[str, ...], KeptMap])
    norms: dict[str, InputRows] = field(default_factory=dict[str, InputRows])
    keep_sources: bool = False
    sources: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    shared: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    receive: Callable[[Gradient], None] | None = None

    def keep_shared(self, name: str, d: Float[Tensor, "example pos head d_head"]) -> None:
        """Keep the gradient of keys or values by head of queries until their map is reached."""
        self.shared[name] = d


class _Map(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "example pos d_in"], linear: LinearMap, rows: InputRows, trace: Trace
    ) -> Float[Tensor, "example pos d_out"]:
        ctx.linear, ctx.rows, ctx.trace = linear, rows, trace
        y = linear(x)
        ctx.output = y.detach()  # the same memory, without the reference back to this node
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None, None, None]:
        (d,) = grad_outputs
        linear: LinearMap = ctx.linear
        d_input = linear.back(d)
        if ctx.trace.receive is not None:
            output = linear.sliced_output(ctx.output)
            ctx.trace.receive(MapGradient(linear.components, linear.axis, ctx.rows, output, d, d_input, linear.weight))
        return d_input, None, None, None


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "*rows d"], norm: Norm, rows: InputRows, trace: Trace
    ) -> Float[Tensor, "*rows d"]:
        y, mean, rstd = norm(x)
        ctx.norm, ctx.rows, ctx.trace, ctx.statistics = norm, rows, trace, (mean, rstd)
        ctx.source = x.detach()
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None, None, None]:
        (d,) = grad_outputs
        norm: Norm = ctx.norm
        mean, rstd = ctx.statistics
        if ctx.trace.receive is not None:
            rows = ctx.rows._replace(x=norm.normalised(ctx.source, rstd).flatten(2))
            ctx.trace.receive(NormGradient(norm.component, rows, d.flatten(2), norm.scale))
        return norm.back(d, ctx.source, mean, rstd, ctx.trace.rules.fixed_norms), None, None, None


def mapped(
    x: Float[Tensor, "example pos d_in"], linear: LinearMap, rows: InputRows, trace: Trace
) -> Float[Tensor, "example pos d_out"]:
    """Apply a map; on the way back its gradients are handed to the trace's receiver."""
    output = cast(Tensor, _Map.apply(x, linear, rows, trace))
    if trace.keep:
        trace.maps[linear.components] = KeptMap(rows, linear.sliced_output(output.detach()))
    return output


def normed(x: Float[Tensor, "*rows d"], norm: Norm, rows: InputRows, trace: Trace) -> Float[Tensor, "*rows d"]:
    """Apply a norm; likewise. `rows` names the normalised input, whose values are made when somebody asks."""
    if trace.keep_sources:
        trace.sources[norm.component] = x.detach()
    if trace.keep:
        normalised = norm.normalised(x.detach(), norm.inverse_deviation(x.detach()))
        trace.norms[norm.component] = rows._replace(x=normalised.flatten(2))
    return cast(Tensor, _Norm.apply(x, norm, rows, trace))
