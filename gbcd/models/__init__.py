"""Models: loaded, described by the file of their family, and run by one decoder."""

from __future__ import annotations

from torch import nn

from gbcd.component import Component
from gbcd.models.spec import ModelSpec

#: Parts of heads, groups and MLPs, in the order in which a node's parts are listed.
_PARTS = ("q", "k", "v", "o", "in", "gate", "up", "out", "down")


def components(model: nn.Module, spec: ModelSpec) -> list[Component]:
    """Every part of `model` in canonical order: heads, groups, MLPs by layer, then norms, then embeddings."""
    found: list[Component] = []
    for one in spec.maps:
        n_params = model.get_parameter(f"{one.module}.weight").numel() // len(one.components)
        found += [_part(name, n_params, spec.n_layers) for name in one.components]
    found.sort(key=_canonical)
    embedding = spec.embedding
    whole = {norm.component: norm.module for norm in spec.norms}
    whole |= {"embed.token": embedding.token}
    if embedding.position is not None:
        whole["embed.position"] = embedding.position
    whole["unembed"] = embedding.unembed
    if embedding.tied:
        whole["embed.tied"] = embedding.token
    sizes = {name: model.get_parameter(f"{module}.weight").numel() for name, module in whole.items()}
    return found + [_part(name, size, spec.n_layers) for name, size in sizes.items()]


def _part(name: str, n_params: int, n_layers: int) -> Component:
    pieces = name.split(".")
    node = ".".join(pieces[:-1]) if pieces[-1] in _PARTS else name
    head = int(pieces[1][1:]) if pieces[1:] and pieces[1].startswith("h") else None
    layer = -1 if pieces[0] == "embed" else n_layers if pieces[0] in ("final", "unembed") else int(pieces[0][1:])
    return Component(name, node, layer, head, pieces[-1], n_params)


def _canonical(component: Component) -> tuple[int, int, int, int]:
    kind = 0 if component.head is not None else 1 if component.is_group else 2
    number = int(component.node.split(".")[1][1:]) if kind < 2 else 0
    return component.layer, kind, number, _PARTS.index(component.part)
