"""Weights and saved activations of GPT-2's own pass: what its forward pass leaves for its backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gbcd.models.products import linear

aten = torch.ops.aten


@dataclass(frozen=True)
class Affine:
    """A linear map `X W + b`, or a layer norm's gain (a weight without `d_in`) and bias."""

    weight: Float[Tensor, "*d_in d_out"]
    bias: Float[Tensor, " d_out"]

    @staticmethod
    def of(module: Any) -> Affine:
        """Weight and bias of a library module, as they are."""
        return Affine(module.weight.detach(), module.bias.detach())

    def __call__(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        """Apply the map."""
        return linear(x, self.weight, self.bias)

    def back(self, d: Float[Tensor, "*rows d_out"]) -> Float[Tensor, "*rows d_in"]:
        """Gradient by the map's input, of a loss whose gradient by its output is `d`."""
        return linear(d, self.weight.T)

    def less_bias(self, output: Float[Tensor, "*rows d_out"]) -> Float[Tensor, "*rows d_out"]:
        """`X W` of an output `X W + b`, in float32 at least."""
        return output.to(torch.promote_types(output.dtype, torch.float32)) - self.bias

    def columns(self, start: int, stop: int) -> Affine:
        """The map to some of the outputs."""
        return Affine(self.weight[:, start:stop], self.bias[start:stop])


@dataclass(frozen=True)
class Normed:
    """A layer norm applied: its input, its output and the statistics that its backward pass needs."""

    source: Float[Tensor, "unit pos d"]
    output: Float[Tensor, "unit pos d"]
    mean: Float[Tensor, "unit pos 1"]
    rstd: Float[Tensor, "unit pos 1"]
    affine: Affine

    @staticmethod
    def of(x: Float[Tensor, "unit pos d"], affine: Affine, eps: float) -> Normed:
        """Normalise the last axis of `x`."""
        output, mean, rstd = aten.native_layer_norm(x, [x.shape[-1]], affine.weight, affine.bias, eps)
        return Normed(x, output, mean, rstd, affine)

    @property
    def normalised(self) -> Float[Tensor, "unit pos d"]:
        """What the gain multiplies."""
        return (self.source - self.mean).mul_(self.rstd).to(self.source.dtype)

    def backward(self, d: Float[Tensor, "unit pos d"]) -> Float[Tensor, "unit pos d"]:
        """Gradient by the norm's input, of a loss whose gradient by its output is `d`."""
        gain, bias = self.affine.weight, self.affine.bias
        width = [d.shape[-1]]
        return aten.native_layer_norm_backward(
            d, self.source, width, self.mean, self.rstd, gain, bias, [True, False, False]
        )[0]

    def first(self, length: int) -> Normed:
        """The first `length` tokens of each unit."""
        # the backward kernel reads the statistics as if they were contiguous
        return Normed(
            self.source[:, :length],
            self.output[:, :length],
            self.mean[:, :length].contiguous(),
            self.rstd[:, :length].contiguous(),
            self.affine,
        )


@dataclass(frozen=True)
class BlockWeights:
    """The maps and norms of one block."""

    norm_1: Affine
    qkv: Affine
    out: Affine
    norm_2: Affine
    mlp_in: Affine
    mlp_out: Affine


@dataclass(frozen=True)
class Rows:
    """Which tokens a part of the pass computes: all of each unit, or those at the answers (`index`)."""

    positions: Int[Tensor, "unit pos"]
    index: Int[Tensor, "unit pos"] | None

    def take(self, x: Float[Tensor, "unit pos d"]) -> Float[Tensor, "unit row d"]:
        """The rows' part of a tensor over all tokens."""
        if self.index is None:
            return x
        return x.gather(1, self.index.unsqueeze(2).expand(-1, -1, x.shape[2]))

    def spread(self, d: Float[Tensor, "unit row d"], length: int) -> Float[Tensor, "unit pos d"]:
        """Back to all `length` tokens, zero elsewhere."""
        if self.index is None:
            return d
        zeros = d.new_zeros(d.shape[0], length, d.shape[2])
        return zeros.scatter_(1, self.index.unsqueeze(2).expand(-1, -1, d.shape[2]), d)


@dataclass(frozen=True)
class Block:
    """Saved activations of one block. `rows` are the tokens for which queries, attention output and MLP exist.

    `qkv` holds `q` and `kv` side by side where queries exist for all tokens, and is None elsewhere.
    """

    rows: Rows
    norm_1: Normed
    query_input: Float[Tensor, "unit row d"]
    qkv: Float[Tensor, "unit pos three_d"] | None
    q: Float[Tensor, "unit row d"]
    kv: Float[Tensor, "unit pos two_d"]
    pattern: Float[Tensor, "unit head row pos"]
    z: Float[Tensor, "unit row d"]
    norm_2: Normed
    pre: Float[Tensor, "unit row d_mlp"]
    act: Float[Tensor, "unit row d_mlp"]


class ScoreGradients(NamedTuple):
    """Gradients by queries, by keys and values, and by all three side by side where queries exist for all tokens."""

    q: Float[Tensor, "unit row d"]
    kv: Float[Tensor, "unit pos two_d"]
    qkv: Float[Tensor, "unit pos three_d"] | None


def first_sequences(block: Block, length: int, n_sequences: int) -> Block:
    """The block restricted to the first sequence of each unit, which lies in the first `length` tokens."""
    index = block.rows.index
    n_rows = length if index is None else n_sequences
    return Block(
        Rows(block.rows.positions[:, :n_rows], None if index is None else index[:, :n_rows]),
        block.norm_1.first(length),
        block.query_input[:, :n_rows],
        None if block.qkv is None else block.qkv[:, :length],
        block.q[:, :n_rows],
        block.kv[:, :length],
        block.pattern[:, :, :n_rows, :length],
        block.z[:, :n_rows],
        block.norm_2.first(n_rows),
        block.pre[:, :n_rows],
        block.act[:, :n_rows],
    )
