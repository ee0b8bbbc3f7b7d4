"""Architectures that can be tapped, each a small file; this one finds the file for a model and checks its claim."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from gbcd.component import Component
from gbcd.errors import BadInput, listed
from gbcd.models import gemma, gpt2, gpt_neox, llama, opt, tracr
from gbcd.models.sites import GainSite, LinearSite, ModelSites


class Architecture(NamedTuple):
    """Name, the test whether a configuration is of this architecture, and its sites."""

    name: str
    matches: Callable[[PreTrainedConfig], bool]
    sites: Callable[[PreTrainedConfig], ModelSites]


#: Parts of heads, groups and MLPs, in the order in which a node's parts are listed.
_PARTS = ("q", "k", "v", "o", "in", "gate", "up", "out", "down")

ARCHITECTURES = (
    Architecture("gpt2", gpt2.matches, gpt2.sites),
    Architecture("llama, mistral, qwen2, qwen3", llama.matches, llama.sites),
    Architecture("gemma2, gemma3 (text)", gemma.matches, gemma.sites),
    Architecture("gpt_neox", gpt_neox.matches, gpt_neox.sites),
    Architecture("opt", opt.matches, opt.sites),
    Architecture("tracr", tracr.matches, tracr.sites),
)


def of(model: PreTrainedModel) -> Architecture:
    """The architecture of `model`, checked: every weight of the model is claimed by a site.

    Raises:
        BadInput: no architecture file knows this configuration, or a weight of the model is left untapped.
    """
    config = model.config
    for architecture in ARCHITECTURES:
        if architecture.matches(config):
            _refuse_unclaimed(model, architecture.sites(config))
            return architecture
    known = ", ".join(architecture.name for architecture in ARCHITECTURES)
    raise BadInput(f"no architecture file knows {type(model).__name__}; known architectures: {known}")


def _refuse_unclaimed(model: nn.Module, sites: ModelSites) -> None:
    embedding = sites.embedding
    modules = [site.module for site in sites.linear] + [gain.module for gain in sites.gains]
    modules += [path for path in (embedding.token, embedding.position, embedding.unembed) if path is not None]
    claimed = {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}
    missing = [name for name, _ in model.named_parameters() if name not in claimed]
    if missing:
        raise BadInput(f"weights that no site taps, so their gradients would be lost:\n{listed(missing)}")


def components(model: PreTrainedModel, sites: ModelSites) -> list[Component]:
    """Every part of `model` in canonical order: heads, groups, MLPs by layer, then norms, then embeddings."""
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


def gain_of(model: nn.Module, site: GainSite) -> Float[Tensor, " d"]:
    """What the norm of `site` multiplies by."""
    return parameter(model, site.module).detach() + site.offset


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


__all__ = ["Architecture", "GainSite", "LinearSite", "ModelSites", "components", "gain_of", "of", "parameter"]
