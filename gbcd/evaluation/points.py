"""Where the value of a component lies in a forward pass, so that it can be read and replaced.

A head is what it hands to the attention output: its slice of the input of the `o` map. An MLP is what it adds to the
residual stream: the output of its `out` or `down` map (which Gemma norms once more). A group of heads that share keys
and values is the values that it hands to them; like a head's queries, its keys only say where those are looked for. Of
the parts, `q`, `k`, `v`, `in`, `gate` and `up` are outputs of their maps (for `in` and `gate` that is the
pre-activation; queries and keys are meant before norm and rotation), and the others are the same point as their node.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from gbcd.analysis.nodes import GROUP_WRITERS, WRITERS
from gbcd.component import Component
from gbcd.models.sites import ModelSites

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
        writes = component.part in (GROUP_WRITERS if component.is_group else WRITERS)
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
            _hook(hooks, model, tensor, partial(record.__setitem__, tensor))
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
            _hook(hooks, model, tensor, partial(replace, patches=patches))
        yield


def block_of(module: str) -> str | None:
    """Dotted path of the block that a module is part of: up to its first number, such as `transformer.h.3`."""
    pieces = module.split(".")
    number = next((index for index, piece in enumerate(pieces) if piece.isdigit()), None)
    return None if number is None else ".".join(pieces[: number + 1])


def _hook(stack: ExitStack, model: nn.Module, tensor: Tensors, act: Callable[[Tensor], Tensor | None]) -> None:
    """Call `act` with the tensor; if it returns one, the pass goes on with that."""
    module, block = model.get_submodule(tensor.module), block_of(tensor.module)
    rows: list[int] = []

    def by_rows(value: Tensor) -> Tensor | None:
        if value.ndim == 3:
            return act(value)
        # rows of the batch end to end (OPT): taken apart for `act`, and put together again behind it
        apart = value.unflatten(0, (rows[-1], -1))
        changed = act(apart)
        return (apart if changed is None else changed).flatten(0, 1)

    if block is not None:
        counting = model.get_submodule(block).register_forward_pre_hook(
            lambda _block, inputs: rows.append(len(inputs[0]))
        )
        stack.callback(counting.remove)
    if tensor.side == "output":
        stack.callback(module.register_forward_hook(lambda *seen: by_rows(seen[2])).remove)
    else:
        stack.callback(module.register_forward_pre_hook(lambda _module, inputs: by_rows(inputs[0])).remove)
