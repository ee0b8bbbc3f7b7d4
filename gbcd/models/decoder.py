"""The one way to run a model: an explicit decoder, read from top to bottom, driven by the spec of its family.

A run is a forward pass that keeps its graph. From it come

- the gradients of any number of losses: `backward` walks back once for each, and hands out inputs, outputs and
  gradients of every map and norm on the way (`captured.py`);
- what a run without a graph leaves: inputs and outputs of maps (`keep`), values of nodes (`record`);
- patched runs: `patches` replaces values of nodes, of some examples of the batch each; `start` begins at any block.

The answer is read at one token of each sequence, so queries, attention output and MLP of the last block exist for that
token alone, and the unembedding reads few rows. Edges are patched in `edge_runs.py`, of the same pieces.

How this compares with hooks on the library's own modules, and why it is the one that stayed: `docs/architectures.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gbcd.models.blocks import bound_attention, bound_mlp, bound_norm
from gbcd.models.captured import EmbeddingGradient, Gradient, InputRows
from gbcd.models.forward import Forward, Options, Rows
from gbcd.models.packing import Packed
from gbcd.models.pieces import Trace, weight_of
from gbcd.models.spec import ModelSpec


class Start(NamedTuple):
    """Where a run begins: the residual stream before block `layer`."""

    layer: int
    residual: Float[Tensor, "example pos d_model"]


class Decoder:
    """A model bound to its weights, which are the library's own tensors.

    Attributes:
        spec: what it is built from.
        unembedding: the matrix that turns the final residual stream into logits; the rows of padding are left out.
    """

    def __init__(self, model: nn.Module, spec: ModelSpec, n_tokens: int | None = None) -> None:
        """Bind the weights of `model`, which `spec` describes; of its outputs only the first `n_tokens` are tokens."""
        self.spec = spec
        embedding = spec.embedding
        self.token_table: Float[Tensor, "vocab d"] = _parameter(model, embedding.token)
        self.position_table = None if embedding.position is None else _parameter(model, embedding.position)
        self.unembedding: Float[Tensor, "vocab d"] = weight_of(model.get_submodule(embedding.unembed)).T[:n_tokens]
        self.attentions = tuple(bound_attention(model, one) for one in spec.attentions)
        self.mlps = tuple(None if one is None else bound_mlp(model, one) for one in spec.mlps)
        self.final_norm = bound_norm(model, spec.final_norm)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.token_table.device

    def embed(self, packed: Packed) -> Float[Tensor, "example pos d_model"]:
        """The residual stream before the first block."""
        x = self.token_table[packed.ids]
        if self.spec.embedding.scale != 1.0:
            x = x * torch.tensor(self.spec.embedding.scale, dtype=x.dtype)
        if self.position_table is not None:
            x = x + self.position_table[packed.positions + self.spec.embedding.first_position]
        return x

    def head_shares(
        self, layer: int, z: Float[Tensor, "example row head d_head"]
    ) -> Float[Tensor, "example row head d_head"]:
        """What `head_weights` turns into what each head adds to the residual stream: `z`.

        Where a norm follows the block, a head adds its share of the normed sum, so `z` times the inverse deviation.
        """
        attention = self.attentions[layer]
        if attention.post_norm is None:
            return z
        return z * attention.post_norm.inverse_deviation(attention.out(z.flatten(2))).unsqueeze(2)

    def head_weights(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """The attention output's weight by head, times that of the norm where one follows the block."""
        attention = self.attentions[layer]
        weight = attention.out.weight.unflatten(0, (self.spec.n_heads, -1))
        return weight if attention.post_norm is None else weight * attention.post_norm.scale

    def written_by_heads(
        self, layer: int, z: Float[Tensor, "example row head d_head"]
    ) -> Float[Tensor, "example row head d_model"]:
        """What each head adds to the residual stream."""
        return torch.einsum("erhk,hkd->erhd", self.head_shares(layer, z).to(z.dtype), self.head_weights(layer))

    def run(self, packed: Packed, options: Options | None = None, start: Start | None = None) -> Run:
        """A forward pass over `packed`, from its tokens or from `start` on."""
        options = options or Options()
        start = start or Start(0, self.embed(packed))
        root = start.residual.detach()
        with torch.set_grad_enabled(options.graph):
            root = root.requires_grad_() if options.graph else root
            forward = Forward(self, packed, options)
            hidden = forward.blocks(start.layer, root)
        return Run(self, packed, options, root, hidden, forward.trace, forward.values)

    def logits(self, hidden: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows vocab"]:
        """What the unembedding makes of the normed residual stream."""
        logits = hidden @ self.unembedding.T
        cap = self.spec.embedding.logit_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)


class Run:
    """A forward pass.

    Attributes:
        trace: what it kept, if it was asked to.
        values: what it recorded.
    """

    def __init__(
        self,
        decoder: Decoder,
        packed: Packed,
        options: Options,
        root: Float[Tensor, "example pos d_model"],
        hidden: Float[Tensor, "example row d_model"],
        trace: Trace,
        values: dict[str, Tensor],
    ) -> None:
        """`root` is where the pass began and `hidden` what the unembedding reads."""
        self.packed, self.trace, self.values = packed, trace, values
        self._decoder, self._options, self._root = decoder, options, root
        self._everywhere = hidden
        self._hidden = hidden if hidden.shape[1] == packed.answers.shape[1] else packed.at_answers(hidden)

    @cached_property
    def logits(self) -> Float[Tensor, "example seq vocab"]:
        """Logits at the answers, without graph."""
        return self._decoder.logits(self._hidden.detach())

    def backward(
        self, d_logits: Float[Tensor, "example seq vocab"], receive: Callable[[Gradient], None]
    ) -> Float[Tensor, "example pos d_model"]:
        """Walk back from `d_logits`, and hand every map's, norm's and embedding's gradient to `receive`.

        `d_logits` may cover only the first of several sequences.

        Returns:
            The gradient by the residual stream where the pass began.
        """
        missing = self.logits.shape[1] - d_logits.shape[1]
        d_logits = self._before_cap(torch.nn.functional.pad(d_logits, (0, 0, 0, missing)) if missing else d_logits)
        d_hidden = by_used_rows(d_logits, self._decoder.unembedding)
        self.trace.receive = receive
        try:
            (d_root,) = torch.autograd.grad(self._hidden, self._root, d_hidden, retain_graph=True)
        finally:
            self.trace.receive = None
        receive(self._embedding_gradient(d_root, d_logits, d_hidden))
        return d_root

    def by_hidden(self, d_logits: Float[Tensor, "example seq vocab"]) -> Float[Tensor, "example seq d_model"]:
        """Gradient by what the unembedding reads, of a loss whose gradient by the logits is `d_logits`."""
        return by_used_rows(self._before_cap(d_logits), self._decoder.unembedding)

    def inputs(self) -> list[InputRows]:
        """Every input of maps and norm weights, once each, of a run that keeps them.

        Last comes what the unembedding reads, at every token where the run computed every token.
        """
        kept = {id(one.input): one.input for one in self.trace.maps.values()}
        at_answers = self._everywhere is self._hidden
        read = self.hidden() if at_answers else Rows(self.packed).named("unembed", self._everywhere)
        return [*kept.values(), *self.trace.norms.values(), read]

    def hidden(self) -> InputRows:
        """What the unembedding reads."""
        return Rows.answers(self.packed).named("unembed", self._hidden)

    def _before_cap(self, d_logits: Float[Tensor, "example seq vocab"]) -> Float[Tensor, "example seq vocab"]:
        cap = self._decoder.spec.embedding.logit_cap
        return d_logits if cap is None else d_logits * (1 - (self.logits / cap).square())

    def _embedding_gradient(self, d_root: Tensor, d_logits: Tensor, d_hidden: Tensor) -> EmbeddingGradient:
        decoder, packed = self._decoder, self.packed
        embedding = decoder.spec.embedding
        position_rows = None
        if decoder.position_table is not None:
            position_rows = decoder.position_table[packed.positions + embedding.first_position]
        # the gradient by the table's rows, not by what the model makes of them
        d_rows = d_root * embedding.scale if embedding.scale != 1.0 else d_root
        return EmbeddingGradient(
            packed.ids, packed.positions, decoder.token_table[packed.ids], position_rows, d_rows, self.hidden(),
            d_hidden, d_logits, embedding.tied, embedding.scale,
        )  # fmt: skip


def by_used_rows(
    d_logits: Float[Tensor, "example seq vocab"], unembedding: Float[Tensor, "vocab d"]
) -> Float[Tensor, "example seq d"]:
    """`d_logits U` by the rows of U that the loss reads: a few hundred of them where it compares two tokens."""
    used = (d_logits != 0).flatten(0, 1).any(0).nonzero().squeeze(1)
    if 4 * len(used) > len(unembedding):
        return d_logits @ unembedding
    return d_logits[..., used] @ unembedding[used]


def _parameter(model: nn.Module, module: str) -> Tensor:
    return model.get_parameter(f"{module}.weight").detach()
