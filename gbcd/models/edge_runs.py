"""Runs in which edges are patched: what a circuit of edges computes while everything else is the counterfactual's.

A reader (the queries, keys or values of a head, an MLP, the logits) reads the sum of what nodes before it write. In a
circuit, each of its edges inside carries what the writer writes in this run, and each outside what the writer writes in
the counterfactual (Hanna et al. 2024, arXiv 2403.17806; Mueller et al. 2025, arXiv 2504.13151): with a_u and a'_u the
two, x the residual stream of this run and C the circuit,

    input of v = x + sum over u -> v outside C of (a'_u - a_u)

A circuit of all edges is the model on the prompt, one of none the model on the counterfactual. Edges are in the order
of `gbcd.engine.edges`. Under grouped keys and values every head of queries has its own edges into them.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gbcd.models.blocks import Attention
from gbcd.models.decoder import Decoder
from gbcd.models.forward import Forward, Options
from gbcd.models.packing import Packed
from gbcd.models.pieces import LinearMap


def circuit_logits(
    decoder: Decoder, packed: Packed, counterfactuals: Packed, circuits: Bool[Tensor, "circuit edge"]
) -> Float[Tensor, "example seq vocab"]:
    """Logits at the answers of every circuit on every prompt; the circuits of one prompt stand one after another.

    Args:
        decoder: the model.
        packed: prompts of one sequence each.
        counterfactuals: of as many tokens each.
        circuits: which edges are inside.
    """
    names = [f"a{layer}.z" for layer in range(decoder.spec.n_layers)]
    names += [f"m{layer}.out" for layer, mlp in enumerate(decoder.mlps) if mlp is not None]
    other = decoder.run(counterfactuals, Options(record=["x0", *names], every_token=True)).values
    written = [other["x0"].unsqueeze(2)]
    for layer, mlp in enumerate(decoder.mlps):
        written.append(decoder.written_by_heads(layer, other[f"a{layer}.z"]))
        if mlp is not None:
            written.append(other[f"m{layer}.out"])
    repeated = packed.repeated(len(circuits))
    forward = _CircuitForward(decoder, repeated, torch.cat(written, 2).transpose(1, 2), circuits)
    with torch.no_grad():
        return decoder.logits(forward.blocks(0, decoder.embed(repeated)))


class _CircuitForward(Forward):
    """A forward pass of several circuits for each prompt, over all tokens."""

    def __init__(
        self,
        decoder: Decoder,
        packed: Packed,
        written: Float[Tensor, "prompt source pos d_model"],
        circuits: Bool[Tensor, "circuit edge"],
    ) -> None:
        """`written` is what nodes write in the counterfactuals."""
        super().__init__(decoder, packed, Options(every_token=True))
        self._outside = (~circuits).to(written)
        # of nodes that have run, what the counterfactual's differ by
        self._change = written.repeat_interleave(len(circuits), 0)
        self._n_known = self._n_edges = 0

    def blocks(self, first: int, x: Float[Tensor, "example pos d"]) -> Float[Tensor, "example row d"]:
        """Every block, and the final norm of what the logits read."""
        self._writes(x.unsqueeze(2))
        for layer in range(first, self.decoder.spec.n_layers):
            x = self._circuit_block(layer, x)
        x = self.packed.at_answers(x + self._missing(1).squeeze(1))
        return x if self.decoder.final_norm is None else self.decoder.final_norm(x)[0]

    def _circuit_block(self, layer: int, x: Float[Tensor, "example pos d"]) -> Float[Tensor, "example pos d"]:
        attention, mlp = self.decoder.attentions[layer], self.decoder.mlps[layer]
        z = self._heads(layer, attention, x)
        sources_before = self._n_known
        self._writes(self.decoder.written_by_heads(layer, z))
        written = attention.out(z.flatten(2))
        after = x + (written if attention.post_norm is None else attention.post_norm(written)[0])
        if mlp is None:
            return after
        reads, known = (x, sources_before) if self.decoder.spec.parallel else (after, self._n_known)
        out = self.mlp(layer, mlp, reads + self._missing(1, known).squeeze(1), self._everything)
        self._writes(out.unsqueeze(2))
        return after + out

    def _heads(
        self, layer: int, attention: Attention, x: Float[Tensor, "example pos d"]
    ) -> Float[Tensor, "example pos head d_head"]:
        """What heads hand to the attention output, each of whose reads has an input of its own."""
        n_heads = self.decoder.spec.n_heads
        read = x.unsqueeze(1) + self._missing(3 * n_heads)
        normal = read if attention.norm is None else attention.norm(read)[0]
        by_part = normal.unflatten(1, (n_heads, 3)).unbind(2)
        parts: dict[str, Tensor] = {}
        for linear in attention.maps:
            for part in linear.parts:
                parts[part] = _by_reader(linear, part, by_part["qkv".index(part)])
        return self.mixed(layer, attention, parts["q"], parts["k"], parts["v"], self._everything)

    def _writes(self, written: Float[Tensor, "example pos node d"]) -> None:
        end = self._n_known + written.shape[2]
        self._change[:, self._n_known : end] -= written.transpose(1, 2)
        self._n_known = end

    def _missing(self, n_readers: int, n_sources: int | None = None) -> Float[Tensor, "example reader pos d"]:
        """What the edges outside change for the next readers, each of which reads the first `n_sources`."""
        n_sources = n_sources or self._n_known
        end = self._n_edges + n_readers * n_sources
        outside = self._outside[:, self._n_edges : end].unflatten(1, (n_readers, n_sources))
        self._n_edges = end
        change = self._change[:, :n_sources]
        outside = outside.repeat(len(change) // len(outside), 1, 1)
        return torch.bmm(outside, change.flatten(2)).unflatten(2, change.shape[2:])


def _by_reader(
    linear: LinearMap, part: str, x: Float[Tensor, "example head pos d"]
) -> Float[Tensor, "example pos head d_head"]:
    """One part of every head, from the head's own input; heads of a group have the group's weights."""
    n_heads, n_slices = x.shape[1], len(linear.components)
    which = linear.parts[part]
    weight = linear.weight.unflatten(1, (n_slices, -1))[:, which]
    repeats = n_heads // weight.shape[1]
    found = torch.einsum("ehpd,dhk->ephk", x, weight.repeat_interleave(repeats, 1))
    if linear.bias is None:
        return found
    return found + linear.bias.unflatten(0, (n_slices, -1))[which].repeat_interleave(repeats, 0)
