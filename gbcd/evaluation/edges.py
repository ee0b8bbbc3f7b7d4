"""Edge attribution: first-order effect of cutting one edge, for all edges of a model in three passes.

With u_s what node s adds to the residual stream, u_s' the same in the counterfactual, and g_r the gradient of the
metric by the residual stream as reader r alone sees it (a head's queries, keys or values, an MLP, the logits),

    score(s -> r) = sum over positions of (u_s - u_s') . g_r

the estimated drop of the metric if r read s from the counterfactual and everything else as it is (Syed et al. 2023,
arXiv 2310.10348, section 3). Signs are those of effects: positive where the edge helps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gbcd.analysis.circuits import INPUT, LOGITS, Config, edge_names, ends
from gbcd.evaluation.attribution import embedded, passed_back
from gbcd.evaluation.metrics import Metric
from gbcd.evaluation.pairs import Pairs
from gbcd.evaluation.points import Point, Tensors, points
from gbcd.evaluation.replay import Replay, block_paths, final_norm
from gbcd.models import parameter
from gbcd.models.load import LoadedModel

#: Maps through which an MLP reads the residual stream.
_MLP_READS = ("in", "gate", "up")

Values = Mapping[Tensors, Tensor]


class _Reader(NamedTuple):
    """One input of a node: slices of maps that read the output of one norm."""

    name: str
    norm: str
    slices: tuple[Point, ...]


def can_score_edges(loaded: LoadedModel) -> bool:
    """True where heads have queries, keys and values of their own, every layer has an MLP, and no norm follows them."""
    names = {component.name for component in loaded.components}
    heads = {component.node for component in loaded.components if component.head is not None}
    own = all(f"{head}.{part}" in names for head in heads for part in "qkv")
    mlps = {f"m{layer}" for layer in range(loaded.sites.n_layers)} <= {part.node for part in loaded.components}
    return own and mlps and "final.norm" in names and not any(name.endswith(".post_norm") for name in names)


def edge_attribution(loaded: LoadedModel, pairs: Pairs, metric: Metric, cfg: Config) -> dict[str, float]:
    """Mean over pairs of the attribution of each edge of `cfg`, by name.

    Args:
        loaded: a model of which `can_score_edges` is true.
        pairs: the prompts.
        metric: what is explained.
        cfg: shape of the graph.
    """
    writers, readers = points(loaded.sites, loaded.components, "node"), _readers(loaded)
    start, end = Tensors(block_paths(loaded.sites)[0], "input"), Tensors(final_norm(loaded.sites), "input")
    written = {start, *(point.tensor for point in writers)}
    read = {end, *(Tensors(reader.norm, "input") for reader in readers)}
    read |= {point.tensor for reader in readers for point in reader.slices}
    tensors = sorted(written | read)
    sources = list(dict.fromkeys(source for source, _ in map(ends, edge_names(cfg))))
    names = [*(reader.name for reader in readers), LOGITS]
    sums = {name: torch.zeros(len(sources), dtype=torch.float64) for name in names}
    for batch in pairs.batches:
        away = Replay(loaded, batch.counterfactual_ids, written).values
        here, gradients = passed_back(loaded, batch, tensors, metric, embedded(loaded, batch.ids))
        change = {tensor: here[tensor] - away[tensor] for tensor in written}
        added = {INPUT: change[start]} | {point.name: _added(loaded, point, change) for point in writers}
        changes = torch.stack([added[source] for source in sources])
        for reader in readers:
            sums[reader.name] += _inner(changes, _read_gradient(loaded, reader, here, gradients))
        sums[LOGITS] += _inner(changes, gradients[end])
    means = {
        name: dict(zip(sources, (total / len(pairs.encoded)).tolist(), strict=True)) for name, total in sums.items()
    }
    return {edge: means[edge.split("->")[1]][ends(edge)[0]] for edge in edge_names(cfg)}


def _readers(loaded: LoadedModel) -> list[_Reader]:
    places = {point.name: point for point in points(loaded.sites, loaded.components, "part")}
    norms = {gain.component: gain.module for gain in loaded.sites.gains}
    found: list[_Reader] = []
    for layer in range(loaded.sites.n_layers):
        attention_norm = norms[f"a{layer}.norm"]
        for part in "qkv":
            names = [f"a{layer}.h{head}" for head in range(loaded.sites.n_heads)]
            found += [_Reader(f"{name}<{part}>", attention_norm, (places[f"{name}.{part}"],)) for name in names]
        maps = tuple(places[name] for part in _MLP_READS if (name := f"m{layer}.{part}") in places)
        found.append(_Reader(f"m{layer}", norms.get(f"m{layer}.norm", attention_norm), maps))
    return found


def _added(loaded: LoadedModel, point: Point, change: Values) -> Float[Tensor, "batch pos d_model"]:
    """What a change of a node's value adds to the residual stream."""
    value = point.of(change[point.tensor])
    return value @ point.of(_weight(loaded, point).T).T if point.tensor.side == "input" else value


def _weight(loaded: LoadedModel, point: Point) -> Float[Tensor, "d_in d_out"]:
    """The weight of a point's module as `Y = X W` has it."""
    weight = parameter(loaded.model, point.tensor.module).detach()
    return weight.T if isinstance(loaded.model.get_submodule(point.tensor.module), nn.Linear) else weight


def _read_gradient(
    loaded: LoadedModel, reader: _Reader, here: Values, gradients: Values
) -> Float[Tensor, "batch pos d_model"]:
    """Gradient of the metric by the residual stream as one reader sees it: back through its maps and its norm."""
    through = [point.of(gradients[point.tensor]) @ point.of(_weight(loaded, point)).T for point in reader.slices]
    with torch.enable_grad():
        before = here[Tensors(reader.norm, "input")].detach().requires_grad_()
        (gradient,) = torch.autograd.grad(
            loaded.model.get_submodule(reader.norm)(before), before, sum(through[1:], through[0])
        )
    return gradient


def _inner(
    changes: Float[Tensor, "source batch pos d_model"], gradient: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, " source"]:
    return (changes.flatten(1) @ gradient.flatten()).double().cpu()
