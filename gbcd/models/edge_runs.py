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
- a reader without an edge inside reads x', so it need not run, nor a node that nobody reads;
- what the last block writes is read at the answer alone.

What all readers of a block read of the nodes before it is one matrix product, of the edges inside and the changes of
what nodes write. Several circuits run at once: each has its own queries, keys and values, behind them what runs in one
of them runs in all, by one product with the weights.
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
from gbcd.models.spec import ModelSpec
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
    heads: Float[Tensor, "head pair row d_model"]
    mlp: Float[Tensor, "pair row d_model"]


class CircuitRuns:
    """Runs of circuits of edges on some pairs of a causal model; what circuits share is computed once.

    Attributes:
        n_rows: tokens of a pair that are computed.
    """

    def __init__(self, decoder: Decoder, packed: Packed, counterfactuals: Packed) -> None:
        """Run the counterfactuals.

        Args:
            decoder: the model, with an MLP in every block.
            packed: prompts of one sequence each.
            counterfactuals: of as many tokens each.
        """
        self._decoder, self._packed = decoder, packed
        self._tail = tail_of(packed, counterfactuals)
        self.n_rows = _n_rows(self._tail)
        self._readers, self._sources = (index.to(decoder.device) for index in _edge_places(decoder.spec))
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
    def logits(self, inside: Bool[Tensor, "circuit edge"]) -> Float[Tensor, "circuit pair 1 vocab"]:
        """Logits at the answers of circuits, each of some edges."""
        reads = inside.new_zeros(len(inside), int(self._readers[-1]) + 1, int(self._sources[-1]) + 1)
        reads[:, self._readers, self._sources] = inside
        run = _Run(self._decoder, self._packed, self._tail, self._blocks, reads, self._embedded)
        last = self._last + run.change_at_logits()
        norm = self._decoder.final_norm
        return self._decoder.logits(last if norm is None else norm(last)[0])

    def _add_block(
        self, layer: int, stream: Float[Tensor, "pair row d_model"], other: Mapping[str, Tensor]
    ) -> Float[Tensor, "pair row d_model"]:
        """Keep a block of the counterfactuals; returns the stream behind it."""
        attention, n_heads, of = self._decoder.attentions[layer], self._decoder.spec.n_heads, self._tail.of
        q, k, v, z = (other[f"a{layer}.{name}"] for name in "qkvz")
        q, z = (of(one.flatten(2)).unflatten(2, one.shape[2:]) for one in (q, z))
        k, v = (one.repeat_interleave(n_heads // one.shape[2], 2) for one in (k, v))
        written, mlp = attention.out(z.flatten(2)), of(other[f"m{layer}.out"].flatten(2))
        after = stream + (written if attention.post_norm is None else attention.post_norm(written)[0])
        middle = stream if self._decoder.spec.parallel else after
        heads = self._decoder.written_by_heads(layer, z).permute(2, 0, 1, 3).contiguous()
        self._blocks.append(_Block(stream, middle, {"q": q, "k": k, "v": v}, heads, mlp))
        return after + mlp


class _Run(Forward):
    """One run of some circuits, block by block; its examples are pairs, each with one circuit after another."""

    def __init__(
        self,
        decoder: Decoder,
        packed: Packed,
        tail: Rows,
        blocks: list[_Block],
        reads: Bool[Tensor, "circuit reader source"],
        embedded: Float[Tensor, "pair row d_model"],
    ) -> None:
        """Nothing runs yet.

        Args:
            decoder: the model.
            packed: the prompts.
            tail: their tokens that are computed.
            blocks: the counterfactuals'.
            reads: which reader reads the change of which source; those of a block are q, k, v of its heads, and its
                MLP.
            embedded: the change of the embeddings.
        """
        super().__init__(decoder, packed.repeated(len(reads)), Options())
        assert tail.at is not None
        self._at, self._blocks = tail.at, blocks
        self._tail = Rows(self.packed, tail.at.repeat_interleave(len(reads), 0))
        into_blocks, into_logits = reads[:, :-1].unflatten(1, (len(blocks), -1)), reads[:, -1:]
        used = _used(into_blocks, into_logits)
        self._used = used[1:].view(len(blocks), -1)
        of_used = torch.cat([self._used[:, :-1].repeat(1, 3), self._used[:, -1:]], 1)
        self._running = into_blocks.any(3) & of_used
        self._into_blocks, self._into_logits = (one[..., used].to(embedded.dtype) for one in (into_blocks, into_logits))
        # at which of the used sources a block begins
        self._first = [int(used[0]) + n for n in (0, *self._used.sum(1).cumsum(0).tolist())]
        self._change = embedded.new_empty(len(reads), self._first[-1], *embedded.shape)
        self._change[:, : self._first[0]] = embedded

    def change_at_logits(self) -> Float[Tensor, "circuit pair 1 d_model"]:
        """Run all blocks; by how much what the logits read differs from the counterfactual."""
        for layer, block in enumerate(self._blocks):
            self._run_block(layer, block)
        change = self._change[:, :, :, -1:]
        return (self._into_logits @ change.flatten(2)).unflatten(2, change.shape[2:])[:, 0]

    def _run_block(self, layer: int, block: _Block) -> None:
        """Compute the changes of the nodes of a block."""
        first, last = self._first[layer : layer + 2]
        if first == last:
            return
        rows = self._tail if layer < len(self._blocks) - 1 else self._answers
        n, n_circuits, n_mlps = _n_rows(rows), len(self._change), int(self._used[layer, -1])
        middle = last - n_mlps
        parts = {part: values.unsqueeze(1).repeat(1, n_circuits, 1, 1, 1) for part, values in block.parts.items()}
        at_mlp = block.middle.repeat(n_circuits, 1, 1, 1)
        for circuit, running in enumerate(self._running[:, layer]):
            inside = self._into_blocks[circuit, layer, running, :first]
            read = (inside @ self._change[circuit, :first].flatten(1)).unflatten(1, block.stream.shape)
            at_heads = read[: int(running[:-1].sum())]
            self._put(
                layer, at_heads.add_(block.stream), running[:-1], {part: parts[part][:, circuit] for part in parts}
            )
            if running[-1]:
                at_mlp[circuit] += read[-1]
        if middle > first:
            mine = self._written(layer, parts, rows)
            other = block.heads[self._used[layer, :-1], None, :, -n:]
            torch.sub(mine, other, out=self._change[:, first:middle, :, -n:].transpose(0, 1))
        if n_mlps:
            inside = self._into_blocks[:, layer, -1:, first:middle]
            at_mlp += (inside @ self._change[:, first:middle].flatten(2)).view(at_mlp.shape)
            mlp = self.decoder.mlps[layer]
            assert mlp is not None
            mine = self.mlp(layer, mlp, at_mlp[:, :, -n:].transpose(0, 1).flatten(0, 1), rows)
            self._change[:, middle, :, -n:] = mine.unflatten(0, (-1, n_circuits)).transpose(0, 1) - block.mlp[:, -n:]

    def _put(
        self,
        layer: int,
        read: Float[Tensor, "reader pair row d_model"],
        running: Bool[Tensor, " three_heads"],
        parts: dict[str, Float[Tensor, "pair pos head d_head"]],
    ) -> None:
        """Replace queries, keys and values of one circuit that run, from what each of them reads."""
        attention = self.decoder.attentions[layer]
        normal = read if attention.norm is None else attention.norm(read)[0]
        by_part = running.view(3, -1)
        inputs = dict(zip("qkv", normal.split(by_part.sum(1).tolist()), strict=True))
        pairs = torch.arange(read.shape[1], device=read.device)[:, None, None]
        for linear in attention.maps:
            for part in linear.parts:
                heads = by_part["qkv".index(part)].nonzero().squeeze(1)
                if len(heads):
                    values = _by_reader(linear, part, heads, by_part.shape[1], inputs[part]).permute(1, 2, 0, 3)
                    # queries are of the tail alone
                    at = slice(None) if part == "q" else self._at[:, :, None]
                    parts[part][slice(None) if part == "q" else pairs, at, heads] = values

    def _written(
        self, layer: int, parts: dict[str, Float[Tensor, "pair circuit pos head d_head"]], rows: Rows
    ) -> Float[Tensor, "writer circuit pair last d_model"]:
        """What the heads that are used write at `rows`."""
        q, k, v = (parts[part].flatten(0, 1) for part in "qkv")
        z = self.mixed(layer, self.decoder.attentions[layer], q[:, -_n_rows(rows) :], k, v, rows)
        heads = self._used[layer, :-1]
        shares = self.decoder.head_shares(layer, z).to(z.dtype)[:, :, heads].unflatten(0, (-1, len(self._change)))
        by_head = shares.permute(3, 1, 0, 2, 4)
        return (by_head.flatten(1, 3) @ self.decoder.head_weights(layer)[heads]).unflatten(1, by_head.shape[1:4])


def _used(
    into_blocks: Bool[Tensor, "circuit block reader source"], into_logits: Bool[Tensor, "circuit 1 source"]
) -> Bool[Tensor, " source"]:
    """Sources that somebody reads, and that can differ from the counterfactual: they read somebody."""
    running = into_blocks.any(3).any(0)
    changing = torch.cat([running[:, :-1].view(len(running), 3, -1).any(1), running[:, -1:]], 1).flatten()
    read = into_blocks.flatten(0, 2).any(0) | into_logits.flatten(0, 1).any(0)
    return read & torch.cat([running.new_ones(1), changing])


def _n_rows(rows: Rows) -> int:
    assert rows.at is not None
    return rows.at.shape[1]


def _edge_places(spec: ModelSpec) -> tuple[Int[Tensor, " edge"], Int[Tensor, " edge"]]:
    """Reader and source of every edge; readers of a block are the queries of its heads, keys, values, and its MLP."""
    known, n_heads = 1, spec.n_heads
    readers, sources = list[Tensor](), list[Tensor]()
    # in the order of edges: head by head q, k, v
    heads = torch.arange(3 * n_heads).view(3, n_heads).T.flatten()
    for layer in range(spec.n_layers):
        first = layer * (3 * n_heads + 1)
        into_mlp = known if spec.parallel else known + n_heads
        readers += [(first + heads).repeat_interleave(known), torch.full((into_mlp,), first + 3 * n_heads)]
        sources += [torch.arange(known).repeat(3 * n_heads), torch.arange(into_mlp)]
        known += n_heads + 1
    readers.append(torch.full((known,), spec.n_layers * (3 * n_heads + 1)))
    return torch.cat(readers), torch.cat([*sources, torch.arange(known)])


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
