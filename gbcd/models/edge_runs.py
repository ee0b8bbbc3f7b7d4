"""Runs in which edges are patched: what a circuit of edges computes while everything else is the counterfactual's.

A reader (the queries, keys or values of a head, an MLP, the logits) reads the sum of what nodes before it write. In a
circuit, each of its edges inside carries what the writer writes in this run, and each outside what the writer writes in
the counterfactual (Hanna et al. 2024, arXiv 2403.17806; Mueller et al. 2025, arXiv 2504.13151): with a_u and a'_u the
two, x' the counterfactual's residual stream and C the circuit,

    input of v = x' + sum over u -> v in C of (a_u - a'_u)

A circuit of all edges is the model on the prompt, one of none the model on the counterfactual. Edges are in the order
of `gbcd.engine.edges`. Under grouped keys and values every head of queries has its own edges into them.

Only what can differ from the counterfactual is computed:

- tokens before the first that a pair does not share are the same in every circuit, so a run is over the tail
  (`tails.py`);
- a reader without an edge inside reads x', so it need not run;
- what the last block writes is read at the answer alone.

What all readers of a block read is one matrix product, of the edges inside and the changes of what nodes write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gbcd.models.decoder import Decoder
from gbcd.models.forward import Forward, Options, Rows
from gbcd.models.packing import Packed
from gbcd.models.pieces import LinearMap
from gbcd.models.tails import tail_of


@dataclass(frozen=True)
class _Block:
    """A block in the counterfactuals.

    Attributes:
        stream: the residual stream that its attention reads.
        middle: the one that its MLP reads.
        parts: queries of the tail, keys and values of all tokens, by part; each head of queries has its own.
        heads: what its heads write.
        mlp: what its MLP writes.
    """

    stream: Float[Tensor, "pair row d_model"]
    middle: Float[Tensor, "pair row d_model"]
    parts: dict[str, Float[Tensor, "pair pos head d_head"]]
    heads: Float[Tensor, "pair row head d_model"]
    mlp: Float[Tensor, "pair row d_model"]


class CircuitRuns(Forward):
    """Runs of circuits of edges on some pairs of a causal model; what circuits share is computed once."""

    def __init__(self, decoder: Decoder, packed: Packed, counterfactuals: Packed) -> None:
        """Run the counterfactuals.

        Args:
            decoder: the model, with an MLP in every block.
            packed: prompts of one sequence each.
            counterfactuals: of as many tokens each.
        """
        super().__init__(decoder, packed, Options())
        self._tail = tail_of(packed, counterfactuals)
        layers = range(decoder.spec.n_layers)
        names = [f"a{layer}.{value}" for layer in layers for value in "qkvz"] + [f"m{layer}.out" for layer in layers]
        other = decoder.run(counterfactuals, Options(record=["x0", *names], every_token=True)).values
        with torch.no_grad():
            stream = self._tail.of(other["x0"])
            self._embedded = self._tail.of(decoder.embed(packed)) - stream
            self._blocks: list[_Block] = []
            for layer in layers:
                stream = self._add_block(layer, stream, other)
            self._last = stream[:, -1:]

    @torch.no_grad()
    def logits(self, inside: Bool[Tensor, " edge"]) -> Float[Tensor, "pair 1 vocab"]:
        """Logits at the answers of the circuit of some edges."""
        spec = self.decoder.spec
        n_heads, n_sources = spec.n_heads, 1 + spec.n_layers * (spec.n_heads + 1)
        change = self._embedded.new_zeros(n_sources, *self._embedded.shape)
        change[0] = self._embedded
        known, edge = 1, 0
        for layer, block in enumerate(self._blocks):
            into_heads = inside[edge : edge + 3 * n_heads * known].view(n_heads, 3, known)
            edge += into_heads.numel()
            rows = self._tail if layer < spec.n_layers - 1 else self._answers
            n = _n_rows(rows)
            if into_heads.any():
                change[known : known + n_heads, :, -n:] = self._heads(layer, block, into_heads, change[:known], rows)
            into_mlp = inside[edge : edge + known + (0 if spec.parallel else n_heads)]
            edge += len(into_mlp)
            if into_mlp.any():
                change[known + n_heads, :, -n:] = self._mlp(
                    layer, block, into_mlp, change[: len(into_mlp), :, -n:], rows
                )
            known += n_heads + 1
        last = self._last + _summed(inside[None, edge:], change[:, :, -1:])[0]
        norm = self.decoder.final_norm
        return self.decoder.logits(last if norm is None else norm(last)[0])

    def _add_block(
        self, layer: int, stream: Float[Tensor, "pair row d_model"], other: Mapping[str, Tensor]
    ) -> Float[Tensor, "pair row d_model"]:
        """Keep a block of the counterfactuals; returns the stream behind it."""
        attention, n_heads, of = self.decoder.attentions[layer], self.decoder.spec.n_heads, self._tail.of
        q, k, v, z = (other[f"a{layer}.{name}"] for name in "qkvz")
        q, z = (of(one.flatten(2)).unflatten(2, one.shape[2:]) for one in (q, z))
        k, v = (one.repeat_interleave(n_heads // one.shape[2], 2) for one in (k, v))
        written, mlp = attention.out(z.flatten(2)), of(other[f"m{layer}.out"].flatten(2))
        after = stream + (written if attention.post_norm is None else attention.post_norm(written)[0])
        middle = stream if self.decoder.spec.parallel else after
        heads = self.decoder.written_by_heads(layer, z)
        self._blocks.append(_Block(stream, middle, {"q": q, "k": k, "v": v}, heads, mlp))
        return after + mlp

    def _heads(
        self,
        layer: int,
        block: _Block,
        inside: Bool[Tensor, "head 3 source"],
        change: Float[Tensor, "source pair row d_model"],
        rows: Rows,
    ) -> Float[Tensor, "head pair last d_model"]:
        """By how much what heads write at `rows` differs from the counterfactual, where one has an edge inside."""
        attention = self.decoder.attentions[layer]
        # part by part, so that the readers of each are a slice
        inside = inside.transpose(0, 1)
        running = inside.any(2)
        read = block.stream + _summed(inside[running], change)
        normal = read if attention.norm is None else attention.norm(read)[0]
        by_part = dict(zip("qkv", normal.split(running.sum(1).tolist()), strict=True))
        parts = dict(block.parts)
        for linear in attention.maps:
            for part in linear.parts:
                heads = running["qkv".index(part)].nonzero().squeeze(1)
                if len(heads):
                    values = _by_reader(linear, part, heads, running.shape[1], by_part[part])
                    self._put(parts, part, heads, values)
        n = _n_rows(rows)
        z = self.mixed(layer, attention, parts["q"][:, -n:], parts["k"], parts["v"], rows)
        return (self.decoder.written_by_heads(layer, z) - block.heads[:, -n:]).movedim(2, 0)

    def _mlp(
        self,
        layer: int,
        block: _Block,
        inside: Bool[Tensor, " source"],
        change: Float[Tensor, "source pair last d_model"],
        rows: Rows,
    ) -> Float[Tensor, "pair last d_model"]:
        """The same of an MLP; `change` is at `rows`."""
        mlp, n = self.decoder.mlps[layer], change.shape[2]
        assert mlp is not None
        x = block.middle[:, -n:] + _summed(inside[None], change)[0]
        return self.mlp(layer, mlp, x, rows) - block.mlp[:, -n:]

    def _put(
        self,
        parts: dict[str, Float[Tensor, "pair pos head d_head"]],
        part: str,
        heads: Int[Tensor, " reader"],
        values: Float[Tensor, "reader pair row d_head"],
    ) -> None:
        """Replace what some heads have in the tail; queries are of the tail alone."""
        parts[part] = parts[part].clone()
        rows = values.permute(1, 2, 0, 3)
        if part == "q":
            parts[part][:, :, heads] = rows
        else:
            assert self._tail.at is not None
            pairs = torch.arange(len(rows), device=rows.device)
            parts[part][pairs[:, None, None], self._tail.at[:, :, None], heads] = rows


def _n_rows(rows: Rows) -> int:
    assert rows.at is not None
    return rows.at.shape[1]


def _summed(
    inside: Bool[Tensor, "reader source"], change: Float[Tensor, "source pair row d_model"]
) -> Float[Tensor, "reader pair row d_model"]:
    return (inside.to(change.dtype) @ change.flatten(1)).unflatten(1, change.shape[1:])


def _by_reader(
    linear: LinearMap, part: str, heads: Int[Tensor, " reader"], n_heads: int, x: Float[Tensor, "reader pair row d"]
) -> Float[Tensor, "reader pair row d_head"]:
    """One part of some heads, from the input of each; heads of a group have the group's weights."""
    n_slices, which = len(linear.components), linear.parts[part]
    weight = linear.weight.unflatten(1, (n_slices, -1))[:, which].transpose(0, 1)
    groups = heads // (n_heads // len(weight))
    found = torch.bmm(x.flatten(1, 2), weight[groups]).unflatten(1, x.shape[1:3])
    if linear.bias is None:
        return found
    return found + linear.bias.unflatten(0, (n_slices, -1))[which][groups][:, None, None]
