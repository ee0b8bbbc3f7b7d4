"""Where the value of a component lies in a forward pass, so that it can be read and replaced.

A head is what it hands to the attention output: its slice of the input of the `o` map. An MLP is what it adds to the
residual stream: the output of its `out` map. Of the parts, `q`, `k`, `v` and `in` are outputs of their maps (for `in`
that is the pre-activation), and `o` and `out` are one and the same point as their head and MLP.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from gbcd.architectures.sites import ModelSites
from gbcd.component import Component

Level = Literal["node", "part"]


class Tensors(NamedTuple):
    """Names one tensor of a forward pass: what goes into a module or what comes out of it."""

    module: str
    side: Literal["input", "output"]


class Point(NamedTuple):
    """The value of one component: slice number `number` of `n_slices` equal slices of a tensor's last dimension."""

    name: str
    layer: int
    tensor: Tensors
    number: int
    n_slices: int

    def of(self, whole: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows slice"]:
        """The component's slice of the tensor, as a view."""
        width = whole.shape[-1] // self.n_slices
        return whole.narrow(-1, self.number * width, width)


def points(sites: ModelSites, components: Collection[Component], level: Level) -> list[Point]:
    """Points of all heads and MLPs (`node`) or of all their parts (`part`), in the order of `components`."""
    places = {
        name: (site.module, index, len(site.components))
        for site in sites.linear
        for index, name in enumerate(site.components)
    }
    found: list[Point] = []
    for component in components:
        writes = component.part in ("o", "out")
        if component.is_circuit_part and (writes or level == "part"):
            module, index, count = places[component.name]
            tensor = Tensors(module, "input" if component.part == "o" else "output")
            name = component.node if level == "node" else component.name
            found.append(Point(name, component.layer, tensor, index, count))
    return found


@contextmanager
def recorded(model: nn.Module, tensors: Collection[Tensors]) -> Generator[dict[Tensors, Tensor]]:
    """Collect `tensors`, with their graph if there is one, from the forward pass that is run inside the context."""
    record: dict[Tensors, Tensor] = {}
    with ExitStack() as hooks:
        for tensor in set(tensors):
            hooks.callback(_hook(model, tensor, lambda value, tensor=tensor: record.__setitem__(tensor, value)).remove)
        yield record


@contextmanager
def replaced(model: nn.Module, values: Mapping[Point, Float[Tensor, "batch pos slice"]]) -> Generator[None]:
    """Let every forward pass inside the context go on with `values` at their points."""
    by_tensor: dict[Tensors, dict[Point, Tensor]] = {}
    for point, value in values.items():
        by_tensor.setdefault(point.tensor, {})[point] = value

    def replace(whole: Tensor, patches: dict[Point, Tensor]) -> Tensor:
        changed = whole.clone()
        for point, value in patches.items():
            point.of(changed).copy_(value)
        return changed

    with ExitStack() as hooks:
        for tensor, patches in by_tensor.items():
            hooks.callback(_hook(model, tensor, lambda whole, patches=patches: replace(whole, patches)).remove)
        yield


def _hook(model: nn.Module, tensor: Tensors, act: Any) -> Any:
    """Call `act` with the tensor; if it returns one, the pass goes on with that."""
    module = model.get_submodule(tensor.module)
    if tensor.side == "output":
        return module.register_forward_hook(lambda _module, _inputs, output: act(output))
    return module.register_forward_pre_hook(lambda _module, inputs: act(inputs[0]))
