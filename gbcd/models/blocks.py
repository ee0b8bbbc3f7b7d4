"""The parts of a block with their weights, bound to the library's own tensors from the family's spec."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from gbcd.models.pieces import LinearMap, Norm
from gbcd.models.spec import AttentionSpec, MapSpec, MlpSpec, NormSpec


@dataclass(frozen=True)
class Attention:
    """Attention of one block with its weights, those of queries and the others apart, too."""

    spec: AttentionSpec
    maps: tuple[LinearMap, ...]
    query_maps: tuple[LinearMap, ...]
    other_maps: tuple[LinearMap, ...]
    out: LinearMap
    norm: Norm | None
    q_norm: Norm | None
    k_norm: Norm | None
    post_norm: Norm | None


@dataclass(frozen=True)
class Mlp:
    """MLP of one block with its weights; see `MlpSpec`."""

    spec: MlpSpec
    maps: tuple[LinearMap, ...]
    out: LinearMap
    norm: Norm | None
    post_norm: Norm | None


def bound_norm(model: nn.Module, spec: NormSpec | None) -> Norm | None:
    """The norm of `spec`, with its weights."""
    return None if spec is None else Norm.of(model, spec)


def _maps(model: nn.Module, specs: tuple[MapSpec, ...]) -> tuple[LinearMap, ...]:
    return tuple(LinearMap.of(model, spec) for spec in specs)


def bound_attention(model: nn.Module, spec: AttentionSpec) -> Attention:
    """Attention of one block, with its weights; queries also apart from keys and values, for the last block."""
    maps = _maps(model, spec.maps)
    split = {True: [], False: []}
    for linear in maps:
        for wanted in (True, False):
            indices = [i for i, name in enumerate(linear.components) if name.endswith(".q") == wanted]
            if indices:
                split[wanted].append(linear.slices(indices))
    norms = (bound_norm(model, one) for one in (spec.norm, spec.q_norm, spec.k_norm, spec.post_norm))
    return Attention(spec, maps, tuple(split[True]), tuple(split[False]), LinearMap.of(model, spec.out), *norms)


def bound_mlp(model: nn.Module, spec: MlpSpec) -> Mlp:
    """The MLP of one block, with its weights."""
    norms = bound_norm(model, spec.norm), bound_norm(model, spec.post_norm)
    return Mlp(spec, _maps(model, spec.maps), LinearMap.of(model, spec.out), *norms)
