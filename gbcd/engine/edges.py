"""Attribution of edges: what cutting one edge would change, to first order, for all edges of a model in one pass.

With a_u what node u writes to the residual stream, a'_u the same in the counterfactual, and g_v the gradient of the loss
by the residual stream as reader v alone sees it (the queries, keys or values of a head, an MLP, the logits),

    score(u -> v) = sum over positions of (a_u - a'_u) . g_v

estimates the change of the loss if v read u from the counterfactual and everything else as it is (Syed et al. 2023,
arXiv 2310.10348, section 3; Hanna et al. 2024, arXiv 2403.17806). It is positive where the edge raises the loss; of the
loss `margin`, where it helps. Readers are counted as MIB does: under grouped keys and values, every head of queries has
its own. Where a norm follows a block (Gemma), what a head writes is its share of the normed sum.

Edges are in the order of their readers: by layer the heads' q, k and v, head by head, then the MLP; last the logits; and
for each reader in the order of what stands before it: the embeddings (`input`), and by layer heads, then MLP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gbcd.engine.gram import widened
from gbcd.models.captured import EmbeddingGradient, Gradient, MapGradient
from gbcd.models.decoder import Decoder, Run
from gbcd.models.packing import Packed
from gbcd.models.pieces import Norm


@dataclass(frozen=True)
class EdgeMoments:
    """Sums over prompts, which merge exactly: number of prompts; by edge the sum, sum of squares, number of positive."""

    n: int
    sum: Float[Tensor, " edge"]
    sum_sq: Float[Tensor, " edge"]
    n_positive: Float[Tensor, " edge"]

    @staticmethod
    def of(values: Float[Tensor, "prompt edge"]) -> EdgeMoments:
        """Moments of some prompts."""
        wide = values.double()
        return EdgeMoments(len(wide), wide.sum(0), wide.square().sum(0), (wide > 0).double().sum(0))

    def added(self, other: EdgeMoments) -> EdgeMoments:
        """Those of both."""
        return EdgeMoments(
            self.n + other.n, self.sum + other.sum, self.sum_sq + other.sum_sq, self.n_positive + other.n_positive
        )

    def lists(self) -> dict[str, Any]:
        """Columns of the table `EDGES`."""
        return {name: value.tolist() for name, value in vars(self).items() if name != "n"} | {"n": self.n}


def recorded(decoder: Decoder) -> tuple[str, ...]:
    """Values of a run that attribution of edges reads."""
    layers = range(decoder.spec.n_layers)
    return ("x0", *(f"a{layer}.z" for layer in layers), *(f"m{layer}.out" for layer in layers))


class EdgeScores:
    """Receives the gradients of one backward pass (`Run.backward`), beside the difference of two runs."""

    def __init__(self, decoder: Decoder, run: Run, other: Run) -> None:
        """`run` is passed back; both recorded what `recorded` names, and `run` keeps its norms' inputs."""
        self._decoder, self._run = decoder, run
        self._written = _differences(decoder, run, other)
        self._read: dict[tuple[int, str], Tensor] = {}
        self._into_mlps: dict[int, Tensor] = {}
        self._into_logits: Tensor | None = None

    def __call__(self, gradient: Gradient) -> None:
        """Take in one gradient."""
        if isinstance(gradient, EmbeddingGradient):
            norm = self._decoder.final_norm
            back = self._through_norm(norm, gradient.d_hidden)
            self._into_logits = self._scores(self._before(self._decoder.spec.n_layers), back.unsqueeze(2))
        elif isinstance(gradient, MapGradient) and gradient.axis == "out":
            layer = int(gradient.components[0].split(".")[0][1:])
            if gradient.components[0].startswith("m"):
                before = self._into_mlps.get(layer)
                self._into_mlps[layer] = gradient.d_input if before is None else before + gradient.d_input
            else:
                self._into_heads(layer, gradient)

    def values(self) -> Float[Tensor, "prompt edge"]:
        """Scores of all edges, after the pass."""
        decoder, n_heads = self._decoder, self._decoder.spec.n_heads
        found: list[Tensor] = []
        for layer in range(decoder.spec.n_layers):
            by_part = torch.stack([self._read[layer, part] for part in "qkv"], 2)
            found.append(by_part.flatten(1))
            mlp = decoder.mlps[layer]
            if mlp is not None:
                d = self._through_norm(mlp.norm, self._into_mlps.pop(layer))
                heads = 0 if decoder.spec.parallel else n_heads
                sources = self._before(layer, heads)
                found.append(self._scores(sources, d.unsqueeze(2)).flatten(1))
        assert self._into_logits is not None
        return torch.cat([*found, self._into_logits.flatten(1)], 1)

    def _into_heads(self, layer: int, gradient: MapGradient) -> None:
        n_heads = self._decoder.spec.n_heads
        attention = self._decoder.attentions[layer]
        width = gradient.d_output.shape[2] // len(gradient.components)
        by_part: dict[str, list[int]] = {}
        for index, name in enumerate(gradient.components):
            by_part.setdefault(name.rsplit(".", 1)[1], []).append(index)
        for part, indices in by_part.items():
            shared = self._run.trace.shared.pop(f"a{layer}.{part}", None)
            d = gradient.d_output.unflatten(2, (-1, width))[:, :, indices] if shared is None else shared
            weight = gradient.weight.unflatten(1, (-1, width))[:, indices]
            weight = weight.repeat_interleave(n_heads // len(indices), 1)
            into = torch.einsum("erhk,dhk->erhd", d.to(weight.dtype), weight)
            back = self._through_norm(attention.norm, into)
            self._read[layer, part] = self._scores(self._before(layer), back)

    def _through_norm(self, norm: Norm | None, d: Float[Tensor, "prompt row *d"]) -> Float[Tensor, "prompt row *d"]:
        """Back to the residual stream, reader by reader."""
        if norm is None:
            return d
        x = self._run.trace.sources[norm.component]
        rows_at_answers = d.shape[1] != x.shape[1]
        x = self._run.packed.at_answers(x) if rows_at_answers else x
        x = x.unsqueeze(2).expand_as(d).contiguous() if d.ndim == 4 else x
        _, mean, rstd = norm(x)
        return norm.back(d, x, mean, rstd, self._run.trace.rules.fixed_norms)

    def _before(self, layer: int, heads: int = 0) -> list[Tensor]:
        """Differences of what stands before `layer`, with `heads` of its own."""
        n_heads = self._decoder.spec.n_heads
        n_mlps = sum(mlp is not None for mlp in self._decoder.mlps[:layer])
        return self._written[: 1 + layer * n_heads + n_mlps + heads]

    def _scores(
        self, sources: list[Tensor], d: Float[Tensor, "prompt row reader d"]
    ) -> Float[Tensor, "prompt reader source"]:
        aligned = [_rows(self._run.packed, one, d.shape[1]) for one in sources]
        written = torch.stack(aligned, 1).flatten(2)
        return torch.bmm(widened(d.transpose(1, 2).flatten(2)), widened(written).transpose(1, 2))


def _rows(packed: Packed, x: Float[Tensor, "prompt pos d"], n_rows: int) -> Float[Tensor, "prompt row d"]:
    """Differences at the rows that a reader has; what was written at the answers alone is zero elsewhere."""
    if x.shape[1] == n_rows:
        return x
    if x.shape[1] == packed.ids.shape[1]:
        return packed.at_answers(x)
    zeros = x.new_zeros(len(x), n_rows, x.shape[2])
    return zeros.scatter_(1, packed.answers.unsqueeze(2).expand(-1, -1, x.shape[2]), x)


def _differences(decoder: Decoder, run: Run, other: Run) -> list[Float[Tensor, "prompt row d_model"]]:
    """What every node writes to the residual stream, less what it writes in the other run, in the order of sources."""
    found = [_aligned(run, run.values["x0"], other.values["x0"])]
    for layer in range(decoder.spec.n_layers):
        here, there = (_by_head(decoder, layer, one.values[f"a{layer}.z"]) for one in (run, other))
        found += list(_aligned(run, here.flatten(2), there.flatten(2)).unflatten(2, (decoder.spec.n_heads, -1)).unbind(2))
        if decoder.mlps[layer] is not None:
            name = f"m{layer}.out"
            found.append(_aligned(run, run.values[name].squeeze(2), other.values[name].squeeze(2)))
    return found


def _aligned(
    run: Run, here: Float[Tensor, "prompt row d"], there: Float[Tensor, "prompt other_row d"]
) -> Float[Tensor, "prompt row d"]:
    packed = run.packed
    if packed.positions.stride(0) == 0:
        return here - there
    if here.shape[1] != packed.ids.shape[1]:
        return here - there.expand_as(here)
    index = packed.positions.clamp(max=there.shape[1] - 1)
    return here - there.gather(1, index.unsqueeze(2).expand(-1, -1, there.shape[2]))


def _by_head(
    decoder: Decoder, layer: int, z: Float[Tensor, "prompt row head d_head"]
) -> Float[Tensor, "prompt row head d_model"]:
    attention = decoder.attentions[layer]
    weight = attention.out.weight.unflatten(0, (z.shape[2], -1))
    written = torch.einsum("erhk,hkd->erhd", z, weight)
    norm = attention.post_norm
    if norm is None:
        return written
    rstd = norm.inverse_deviation(attention.out(z.flatten(2)))
    return (written * rstd.unsqueeze(2) * norm.scale).to(z.dtype)
