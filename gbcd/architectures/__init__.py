"""Architectures that can be tapped, each a small file; this one finds the file for a model and checks its claim."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gbcd.architectures import gpt2, tracr
from gbcd.architectures.sites import GainSite, LinearSite, ModelSites
from gbcd.component import Component
from gbcd.errors import BadInput, listed


class Architecture(NamedTuple):
    """Name, the test whether a configuration is of this architecture, and its sites."""

    name: str
    matches: Callable[[PreTrainedConfig], bool]
    sites: Callable[[PreTrainedConfig], ModelSites]


ARCHITECTURES = (
    Architecture("gpt2", gpt2.matches, gpt2.sites),
    Architecture("tracr", tracr.matches, tracr.sites),
)


def of(model: PreTrainedModel) -> Architecture:
    """The architecture of `model`, checked: every linear map of the model is claimed by a site.

    Raises:
        BadInput: no architecture file knows this configuration, or a linear map of the model is left untapped.
    """
    config = model.config
    for architecture in ARCHITECTURES:
        if architecture.matches(config):
            _refuse_unclaimed(model, architecture.sites(config))
            return architecture
    known = ", ".join(architecture.name for architecture in ARCHITECTURES)
    raise BadInput(f"no architecture file knows {type(model).__name__}; known architectures: {known}")


def _refuse_unclaimed(model: nn.Module, sites: ModelSites) -> None:
    claimed = {site.module for site in sites.linear} | {sites.embedding.unembed}
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    missing = [name for name in linear if name not in claimed]
    if missing:
        raise BadInput(f"linear maps that no site taps, so their gradients would be lost:\n{listed(missing)}")


def components(model: PreTrainedModel, sites: ModelSites) -> list[Component]:
    """Every part of `model` in canonical order: heads and MLPs layer by layer, then norms, then embeddings."""
    found: list[Component] = []
    for site in sites.linear:
        n_params = parameter(model, site.module).numel() // len(site.components)
        found += [_part(name, n_params, sites.n_layers) for name in site.components]
    found.sort(key=_canonical)
    found += [_part(gain.component, parameter(model, gain.module).numel(), sites.n_layers) for gain in sites.gains]
    embedding = sites.embedding
    tables = {"embed.token": embedding.token, "embed.position": embedding.position, "unembed": embedding.unembed}
    if embedding.tied:
        tables["embed.tied"] = embedding.token
    for name, module in tables.items():
        if module is not None:
            found.append(_part(name, parameter(model, module).numel(), sites.n_layers))
    return found


def parameter(model: nn.Module, module: str) -> nn.Parameter:
    """The weight of the module at the dotted path `module`."""
    return cast(nn.Parameter, model.get_submodule(module).weight)


def _part(name: str, n_params: int, n_layers: int) -> Component:
    pieces = name.split(".")
    node = name if pieces[-1] in ("norm", "token", "position", "tied", "unembed") else ".".join(pieces[:-1])
    head = int(pieces[1][1:]) if len(pieces) == 3 else None
    layer = -1 if pieces[0] == "embed" else n_layers if pieces[0] in ("final", "unembed") else int(pieces[0][1:])
    return Component(name, node, layer, head, pieces[-1], n_params)


def _canonical(component: Component) -> tuple[int, bool, int, int]:
    order = ("q", "k", "v", "o", "in", "out")
    return component.layer, component.head is None, component.head or 0, order.index(component.part)


__all__ = ["Architecture", "GainSite", "LinearSite", "ModelSites", "components", "of", "parameter"]
