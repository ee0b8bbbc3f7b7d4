"""Attribution of edges: what cutting one edge would change, to first order, for all edges of a model in one pass.

With a_u what node u writes to the residual stream, a'_u the same in the counterfactual, and g_v the gradient of the
loss by the residual stream as reader v alone sees it (the queries, keys or values of a head, an MLP, the logits),

    score(u -> v) = sum over positions of (a_u - a'_u) . g_v

estimates the change of the loss if v read u from the counterfactual and everything else as it is (Syed et al. 2023,
arXiv 2310.10348, section 3; Hanna et al. 2024, arXiv 2403.17806). It is positive where the edge raises the loss; of the
loss `margin`, where it helps. Readers are counted as MIB does: under grouped keys and values, every head of queries has
its own. Where a norm follows a block (Gemma), what a head writes is its share of the normed sum.

Edges are in the order of their readers: by layer the heads' q, k and v, head by head, then the MLP; last the logits;
and for each reader in the order of what stands before it: the embeddings (`input`), and by layer heads, then MLP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gbcd.engine.edge_sources import EdgeSources
from gbcd.engine.gram import widened
from gbcd.models.captured import EmbeddingGradient, Gradient, MapGradient
from gbcd.models.decoder import Decoder, Run
from gbcd.models.pieces import Norm, slices_by_part

#: Readers in one product with sources, about.
_READERS = 108


class EdgeScores:
    """Receives the gradients of one backward pass (`Run.backward`), beside what sources wrote.

    The gradient g at a head's input is never passed through the norm before it by itself. With W the head's weight, s
    the norm's, r its inverse deviation and n = r x the normalised input of width d (for a layer norm, x and the columns
    of s W less their means), a gradient h by the map's output `y = n s W` gives

        g = r (s W h - <y, h> n / d)

    so that one product makes the gradients of all heads. Those of some layers are kept, and a second product takes
    them to all sources: with the readers of one layer it would be slow, since it would have few rows.
    """

    def __init__(self, decoder: Decoder, run: Run, sources: EdgeSources) -> None:
        """`run` is passed back, and keeps its norms' inputs."""
        self._decoder, self._run, self._sources = decoder, run, sources
        everywhere, n_heads = sources.everywhere, decoder.spec.n_heads
        n_layers = min(-(-_READERS // (3 * n_heads)), decoder.spec.n_layers)
        self._rows = everywhere.new_zeros(n_layers, len("qkv"), n_heads, *everywhere.shape[1:])
        self._block: list[int] = []
        self._layer: dict[str, _Readers] = {}
        self._late_queries: Tensor | None = None
        self._into_heads: dict[int, Tensor] = {}
        self._d_mlps: dict[int, Tensor] = {}
        self._d_hidden: Tensor | None = None

    def __call__(self, gradient: Gradient) -> None:
        """Take in one gradient."""
        if isinstance(gradient, EmbeddingGradient):
            self._d_hidden = gradient.d_hidden
        elif isinstance(gradient, MapGradient) and gradient.axis == "out":
            name = gradient.components[0]
            layer = int(name.split(".")[0][1:])
            if name.startswith("a"):
                self._heads(layer, gradient)
            elif layer in self._d_mlps:
                self._d_mlps[layer] = self._d_mlps[layer] + gradient.d_input
            else:
                self._d_mlps[layer] = gradient.d_input

    def values(self) -> Float[Tensor, "prompt edge"]:
        """Scores of all edges, after the pass."""
        decoder, n_heads = self._decoder, self._decoder.spec.n_heads
        self._score_block()
        into_mlps = self._mlps()
        found: list[Tensor] = []
        for layer in range(decoder.spec.n_layers):
            found.append(self._into_heads.pop(layer).transpose(1, 2).flatten(1))
            if layer in into_mlps:
                n_sources = self._sources.before(layer) + (0 if decoder.spec.parallel else n_heads)
                found.append(into_mlps[layer][:, :n_sources])
        assert self._d_hidden is not None
        logits = self._before_norm(decoder.final_norm, self._d_hidden)
        return torch.cat([*found, self._products(logits.unsqueeze(0)).squeeze(1)], 1)

    def _mlps(self) -> dict[int, Float[Tensor, "prompt source"]]:
        """Products of gradients at inputs of MLPs with all sources, those behind them too: one product of matrices."""
        by_rows: dict[int, dict[int, Tensor]] = {}
        for layer, d in sorted(self._d_mlps.items()):
            mlp = self._decoder.mlps[layer]
            assert mlp is not None
            rows = self._sources.kept(self._before_norm(mlp.norm, d))
            by_rows.setdefault(rows.shape[1], {})[layer] = rows
        self._d_mlps.clear()
        found: dict[int, Tensor] = {}
        for rows in by_rows.values():
            found |= dict(zip(rows, self._products(torch.stack(list(rows.values()))).unbind(1), strict=True))
        return found

    def _heads(self, layer: int, gradient: MapGradient) -> None:
        """Gradients at the inputs of queries, keys or values, one for every head; of a whole layer, their edges."""
        n_slices = len(gradient.components)
        output = gradient.input.x @ gradient.weight if gradient.output is None else gradient.output
        for part, which in slices_by_part(gradient.components).items():
            weight, y = (one.unflatten(-1, (n_slices, -1))[..., which, :] for one in (gradient.weight, output))
            d = self._run.trace.shared.pop(f"a{layer}.{part}", None)
            if d is None:
                d = gradient.d_output.unflatten(2, (n_slices, -1))[:, :, which]
            elif part == "k":
                d = self._before_key_norm(layer, d)
            self._layer[part] = self._readers(layer, part, weight, self._sources.kept(y), self._sources.kept(d))
        if len(self._layer) == len("qkv"):
            self._complete(layer)

    def _readers(
        self,
        layer: int,
        part: str,
        weight: Float[Tensor, "d_model group d_head"],
        y: Float[Tensor, "prompt row group d_head"],
        d: Float[Tensor, "prompt row head d_head"],
    ) -> _Readers:
        """Gradients of one part of all heads at the residual stream, but for what goes along the norm's input."""
        n_prompts, n_rows, n_heads, width = d.shape
        weight, y, d = widened(weight), widened(y), widened(d).unflatten(2, (weight.shape[1], -1))
        norm, along = self._decoder.attentions[layer].norm, None
        if norm is not None:
            d = d * norm.inverse_deviation(self._norm_input(norm, n_rows))[..., None, None]
            if not self._run.trace.rules.fixed_norms:
                y = y if norm.bias is None else y - torch.einsum("d,dgk->gk", widened(norm.bias), weight)
                along = torch.linalg.vecdot(d, y.unsqueeze(3)).flatten(2).permute(2, 0, 1) / -len(weight)
            weight = weight * norm.scale[:, None, None]
            weight = weight - weight.mean(0) if norm.kind == "layer" else weight
        rows = self._rows[len(self._block), "qkv".index(part)]
        if n_rows != rows.shape[2]:
            rows = rows.new_empty(n_heads, n_prompts, n_rows, len(weight))
        by_group = d.permute(2, 3, 0, 1, 4).reshape(d.shape[2], -1, width)
        torch.bmm(by_group, weight.permute(1, 2, 0), out=rows.view(len(by_group), -1, len(weight)))
        return _Readers(rows, along)

    def _complete(self, layer: int) -> None:
        """Complete the readers of a layer, and score the block where it is full."""
        q, k, v = (self._layer.pop(part) for part in "qkv")
        rows = self._rows[len(self._block)]
        if q.rows.shape == k.rows.shape:
            self._add_along(layer, rows, (q, k, v))
        else:
            # in the last block, queries stand at the answers alone
            self._add_along(layer, rows[1:], (k, v))
            self._add_along(layer, q.rows.unsqueeze(0), (q,))
            self._late_queries = self._products(q.rows, self._sources.before(layer))
        self._block.append(layer)
        if len(self._block) == len(self._rows):
            self._score_block()

    def _add_along(
        self, layer: int, rows: Float[Tensor, "part head prompt row d"], readers: Sequence[_Readers]
    ) -> None:
        """Add to `rows`, which are those of `readers`, what goes along the norm's input."""
        norm, along = self._decoder.attentions[layer].norm, [one.along for one in readers if one.along is not None]
        if norm is not None and along:
            x = self._norm_input(norm, rows.shape[3])
            rows.addcmul_(torch.stack(along).unsqueeze(4), norm.normalised(x, norm.inverse_deviation(x)))

    def _score_block(self) -> None:
        """Score the edges into the heads of the layers that are complete."""
        if not self._block:
            return
        n_sources = self._sources.before(max(self._block))
        rows = self._rows[: len(self._block)]
        found = self._products(rows.flatten(0, 2), n_sources).unflatten(1, rows.shape[:3])
        for number, layer in enumerate(self._block):
            scores = found[:, number, ..., : self._sources.before(layer)]
            if self._late_queries is not None:
                scores = torch.cat([self._late_queries.unsqueeze(1), scores[:, 1:]], 1)
                self._late_queries = None
            self._into_heads[layer] = scores
        self._block.clear()

    def _products(
        self, readers: Float[Tensor, "reader prompt row d"], n_sources: int | None = None
    ) -> Float[Tensor, "prompt reader source"]:
        """Inner products, over positions and width, of readers and the first `n_sources`."""
        sources = self._sources.everywhere
        if readers.shape[2] != sources.shape[2]:
            sources = self._sources.at_answers
        written = sources[:n_sources].flatten(2).transpose(0, 1)
        return torch.bmm(written, readers.flatten(2).permute(1, 2, 0)).transpose(1, 2)

    def _norm_input(self, norm: Norm, n_rows: int) -> Float[Tensor, "prompt row d"]:
        x = self._run.trace.sources[norm.component]
        at_answers = n_rows != self._sources.everywhere.shape[2] and x.shape[1] != n_rows
        return widened(self._run.packed.at_answers(x) if at_answers else self._sources.kept(x))

    def _before_norm(self, norm: Norm | None, d: Float[Tensor, "prompt row d"]) -> Float[Tensor, "prompt row d"]:
        """Gradients of one reader, back through its norm."""
        if norm is None:
            return widened(d)
        x = self._run.trace.sources[norm.component]
        x = self._run.packed.at_answers(x) if x.shape[1] != d.shape[1] else x
        _, mean, rstd = norm(x)
        return widened(norm.back(d, x, mean, rstd, self._run.trace.rules.fixed_norms))

    def _before_key_norm(
        self, layer: int, d: Float[Tensor, "prompt pos head d_head"]
    ) -> Float[Tensor, "prompt pos head d_head"]:
        """Gradients of keys, one for every head of queries, back through their norm where the model has one."""
        norm = self._decoder.attentions[layer].k_norm
        if norm is None:
            return d
        x = self._run.trace.sources[norm.component]
        x = x.repeat_interleave(d.shape[2] // x.shape[2], 2)
        _, mean, rstd = norm(x)
        return norm.back(d.contiguous(), x, mean, rstd, self._run.trace.rules.fixed_norms)


class _Readers(NamedTuple):
    """Of one part of all heads: gradients at the residual stream, and what is added of the norm's input, if any."""

    rows: Float[Tensor, "head prompt row d"]
    along: Float[Tensor, "head prompt row"] | None
