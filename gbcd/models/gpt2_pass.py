"""GPT-2's own forward and backward pass, made for one purpose: taps at the cost of the matrix products.

Compared with a pass through the library's modules: no parameter gradients and no graph, one fused GELU kernel, the last
block's query, attention output and MLP at the answer positions alone, no product that no tap needs, and each tap is
handed out while its tensors are still in cache. Attention is written out, since at the lengths of prompts the fused
kernels are slower than the six small products, and so it serves any mask and any precision.

The formulas are those of transformers' `GPT2LMHeadModel` (checked against it to rounding by the tests); backward
formulas follow from them by the chain rule, with `aten` kernels for layer norm and GELU.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import GPT2Config, PreTrainedModel

from gbcd.models.gpt2_activations import (
    Affine,
    Block,
    BlockWeights,
    Normed,
    Rows,
    ScoreGradients,
    first_sequences,
)
from gbcd.models.products import by_used_rows, linear
from gbcd.models.sites import head_parts
from gbcd.models.taps import EmbeddingTap, GainTap, InputRows, LinearTap, Tap
from gbcd.models.units import PackedUnits, Sequences, pack

aten = torch.ops.aten


def supports(config: object) -> bool:
    """True for the GPT-2 configurations whose formulas this file states; others take the general pass."""
    return (
        isinstance(config, GPT2Config)
        and config.activation_function in ("gelu_new", "gelu_pytorch_tanh")
        and config.scale_attn_weights
        and not config.scale_attn_by_inverse_layer_idx
        and not config.reorder_and_upcast_attn
        and not config.add_cross_attention
    )


class Gpt2Pass:
    """Runs a GPT-2 on batches of units; the weights are the library's own tensors, not copies."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Take the weights of `model`, a `GPT2LMHeadModel` for which `supports` is true."""
        config = cast(GPT2Config, model.config)
        body: Any = cast(Any, model).transformer
        self.n_heads = int(config.n_head)
        self.eps = float(config.layer_norm_epsilon)
        self.device = model.device
        self.token_table = body.wte.weight.detach()
        self.position_table = body.wpe.weight.detach()
        self.unembedding = cast(Any, model).lm_head.weight.detach()
        self.tied = bool(model.config.tie_word_embeddings)
        self.final_norm = Affine.of(body.ln_f)
        self.blocks = [
            BlockWeights(*map(Affine.of, (b.ln_1, b.attn.c_attn, b.attn.c_proj, b.ln_2, b.mlp.c_fc, b.mlp.c_proj)))
            for b in body.h
        ]

    @torch.no_grad()
    def forward(self, units: Sequence[Sequences], every_token: bool = False) -> Gpt2Forward:
        """Forward pass; see `gbcd.models.taps.ModelPass`."""
        packed = pack(units, self.device)
        everything = Rows(packed.positions, None)
        answers = Rows(packed.positions.gather(1, packed.answers), packed.answers)
        x = self.token_table[packed.ids] + self.position_table[packed.positions]
        hidden_mask = torch.zeros_like(packed.visible, dtype=x.dtype).masked_fill_(~packed.visible, -torch.inf)
        blocks: list[Block] = []
        for layer, weights in enumerate(self.blocks):
            last = layer == len(self.blocks) - 1
            block, x = self._block(weights, x, hidden_mask, answers if last and not every_token else everything)
            blocks.append(block)
        final = Normed.of(answers.take(x) if every_token else x, self.final_norm, self.eps)
        if every_token:
            normalised = Normed.of(x, self.final_norm, self.eps).normalised
            return Gpt2Forward(self, packed, blocks, final, InputRows("final.norm", normalised, packed.positions))
        return Gpt2Forward(self, packed, blocks, final, InputRows("final.norm", final.normalised, answers.positions))

    def _block(
        self, weights: BlockWeights, x: Float[Tensor, "unit pos d"], mask: Float[Tensor, "unit pos pos"], rows: Rows
    ) -> tuple[Block, Float[Tensor, "unit row d"]]:
        d_model = x.shape[2]
        norm_1 = Normed.of(x, weights.norm_1, self.eps)
        if rows.index is None:
            query_input, qkv = norm_1.output, weights.qkv(norm_1.output)
            q, kv = qkv[..., :d_model], qkv[..., d_model:]
        else:
            query_input, qkv = rows.take(norm_1.output), None
            q = weights.qkv.columns(0, d_model)(query_input)
            kv = weights.qkv.columns(d_model, 3 * d_model)(norm_1.output)
            mask = rows.take(mask)
        heads, keys, values = self.heads(q), *map(self.heads, kv.split(d_model, 2))
        scores = torch.matmul(heads * heads.shape[-1] ** -0.5, keys.transpose(2, 3))
        pattern = scores.add_(mask.unsqueeze(1)).softmax(3)
        z = self.merged(torch.matmul(pattern, values))
        middle = weights.out(z).add_(rows.take(x))
        norm_2 = Normed.of(middle, weights.norm_2, self.eps)
        pre = weights.mlp_in(norm_2.output)
        act = functional.gelu(pre, approximate="tanh")
        after = weights.mlp_out(act).add_(middle)
        return Block(rows, norm_1, query_input, qkv, q, kv, pattern, z, norm_2, pre, act), after

    def heads(self, x: Float[Tensor, "unit pos d"]) -> Float[Tensor, "unit head pos d_head"]:
        """Heads side by side to a head axis, in float32 at least: 1 - p of a sure head has no digits in bfloat16."""
        wide = torch.promote_types(x.dtype, torch.float32)
        return x.unflatten(2, (self.n_heads, -1)).transpose(1, 2).to(wide)

    def merged(self, x: Float[Tensor, "unit head pos d_head"]) -> Float[Tensor, "unit pos d"]:
        """Head axis back to heads side by side, in the model's type."""
        return x.transpose(1, 2).flatten(2).to(self.token_table.dtype)

    def side_by_side(self, *parts: Float[Tensor, "unit head pos d_head"]) -> Float[Tensor, "unit pos width"]:
        """Several tensors of heads merged and laid beside each other, in one copy."""
        units, _, length, _ = parts[0].shape
        beside = torch.stack([part.transpose(1, 2) for part in parts], 2).view(units, length, -1)
        return beside.to(self.token_table.dtype)


class Gpt2Forward:
    """Saved activations of a batch; see `gbcd.models.taps.ForwardPass`."""

    def __init__(
        self,
        model: Gpt2Pass,
        packed: PackedUnits,
        blocks: list[Block],
        final: Normed,
        final_rows: InputRows,
    ) -> None:
        """Keep what the backward pass needs and compute the logits at the answers; `final_rows` is for `inputs`."""
        self._model, self._packed, self._blocks, self._final = model, packed, blocks, final
        self._final_rows = final_rows
        self._hidden = InputRows("unembed", final.output, packed.positions.gather(1, packed.answers))
        self.logits: Float[Tensor, "unit seq vocab"] = linear(final.output, model.unembedding.T)

    def inputs(self) -> Iterator[InputRows]:
        """See `gbcd.models.taps.ForwardPass`."""
        positions = self._packed.positions
        for layer, block in enumerate(self._blocks):
            rows = block.rows.positions
            yield InputRows(f"a{layer}.norm", block.norm_1.normalised, positions)
            yield InputRows(f"a{layer}.qkv", block.norm_1.output, positions)
            yield InputRows(f"a{layer}.o", block.z, rows)
            yield InputRows(f"m{layer}.norm", block.norm_2.normalised, rows)
            yield InputRows(f"m{layer}.in", block.norm_2.output, rows)
            yield InputRows(f"m{layer}.out", block.act, rows)
        yield self._final_rows
        yield self._hidden

    @torch.no_grad()
    def backward(self, d_logits: Float[Tensor, "unit seq vocab"]) -> Iterator[Tap]:
        """See `gbcd.models.taps.ForwardPass`."""
        n_sequences = d_logits.shape[1]
        if n_sequences == self._packed.answers.shape[1]:
            length, final, hidden = self._packed.ids.shape[1], self._final, self._hidden
        else:
            length, final = self._packed.first_length, self._final.first(n_sequences)
            hidden = InputRows(
                self._hidden.name, self._hidden.x[:, :n_sequences], self._hidden.positions[:, :n_sequences]
            )
        positions = self._packed.positions[:, :length]
        d_hidden = by_used_rows(d_logits, self._model.unembedding)
        yield GainTap(
            "final.norm", InputRows("final.norm", final.normalised, hidden.positions), d_hidden, final.affine.weight
        )
        d = final.backward(d_hidden)
        for layer in reversed(range(len(self._blocks))):
            block = self._blocks[layer]
            if n_sequences < self._packed.answers.shape[1]:
                block = first_sequences(block, length, n_sequences)
            d = yield from self._block_backward(layer, block, d, positions)
        ids, model = self._packed.ids[:, :length], self._model
        token_rows, position_rows = model.token_table[ids], model.position_table[positions]
        yield EmbeddingTap(ids, positions, token_rows, position_rows, d, hidden, d_hidden, d_logits, model.tied)

    def _block_backward(
        self, layer: int, block: Block, d: Float[Tensor, "unit row d"], positions: Int[Tensor, "unit pos"]
    ) -> Generator[Tap, None, Float[Tensor, "unit pos d"]]:
        weights, rows = self._model.blocks[layer], block.rows
        d_middle = yield from self._mlp_backward(layer, block, d)
        d_z = weights.out.back(d_middle)
        z = InputRows(f"a{layer}.o", block.z, rows.positions)
        yield LinearTap(self._names(layer, "o"), "in", z, d_middle, lambda: (block.z, d_z))
        d_normed = yield from self._attention_backward(layer, block, d_z, positions)
        normalised = InputRows(f"a{layer}.norm", block.norm_1.normalised, positions)
        yield GainTap(f"a{layer}.norm", normalised, d_normed, weights.norm_1.weight)
        return block.norm_1.backward(d_normed).add_(rows.spread(d_middle, positions.shape[1]))

    def _mlp_backward(
        self, layer: int, block: Block, d: Float[Tensor, "unit row d"]
    ) -> Generator[Tap, None, Float[Tensor, "unit row d"]]:
        weights, positions = self._model.blocks[layer], block.rows.positions
        d_act = weights.mlp_out.back(d)
        act = InputRows(f"m{layer}.out", block.act, positions)
        yield LinearTap((f"m{layer}.out",), "in", act, d, lambda: (block.act, d_act))
        d_pre = aten.gelu_backward(d_act, block.pre, approximate="tanh")
        d_normed = weights.mlp_in.back(d_pre)
        normed = InputRows(f"m{layer}.in", block.norm_2.output, positions)
        yield LinearTap((f"m{layer}.in",), "out", normed, d_pre, lambda: (normed.x, d_normed))
        normalised = InputRows(f"m{layer}.norm", block.norm_2.normalised, positions)
        yield GainTap(f"m{layer}.norm", normalised, d_normed, weights.norm_2.weight)
        return block.norm_2.backward(d_normed).add_(d)

    def _attention_backward(
        self, layer: int, block: Block, d_z: Float[Tensor, "unit row d"], positions: Int[Tensor, "unit pos"]
    ) -> Generator[Tap, None, Float[Tensor, "unit pos d"]]:
        qkv, d_model = self._model.blocks[layer].qkv, d_z.shape[2]
        d_q, d_kv, d_qkv = self._scores_backward(block, d_z)
        normed = InputRows(f"a{layer}.qkv", block.norm_1.output, positions)
        if d_qkv is not None and block.qkv is not None:
            output = block.qkv
            yield LinearTap(self._names(layer, "qkv"), "out", normed, d_qkv, lambda: (qkv.less_bias(output), d_qkv))
            return qkv.back(d_qkv)
        at_answers = InputRows(f"a{layer}.qkv", block.query_input, block.rows.positions)
        q_map, kv_map = qkv.columns(0, d_model), qkv.columns(d_model, 3 * d_model)
        yield LinearTap(self._names(layer, "q"), "out", at_answers, d_q, lambda: (q_map.less_bias(block.q), d_q))
        yield LinearTap(self._names(layer, "kv"), "out", normed, d_kv, lambda: (kv_map.less_bias(block.kv), d_kv))
        return kv_map.back(d_kv).add_(block.rows.spread(q_map.back(d_q), positions.shape[1]))

    def _scores_backward(self, block: Block, d_z: Float[Tensor, "unit row d"]) -> ScoreGradients:
        model, pattern = self._model, block.pattern
        q, (k, v) = model.heads(block.q), map(model.heads, block.kv.chunk(2, 2))
        d_out = model.heads(d_z)
        d_v = torch.matmul(pattern.transpose(2, 3), d_out)
        d_pattern = torch.matmul(d_out, v.transpose(2, 3))
        # Softmax does not see a shift. Taken at the largest p, it leaves the digits of a head that is nearly certain
        # in the sum, where `1 - p` would have lost them.
        d_pattern = d_pattern - d_pattern.gather(3, pattern.argmax(3, keepdim=True))
        d_scores = aten._softmax_backward_data(d_pattern, pattern, 3, pattern.dtype).mul_(q.shape[-1] ** -0.5)
        d_q, d_k = torch.matmul(d_scores, k), torch.matmul(d_scores.transpose(2, 3), q)
        if block.qkv is None:
            return ScoreGradients(model.merged(d_q), model.side_by_side(d_k, d_v), None)
        d_qkv = model.side_by_side(d_q, d_k, d_v)
        return ScoreGradients(d_qkv[..., : d_z.shape[2]], d_qkv[..., d_z.shape[2] :], d_qkv)

    def _names(self, layer: int, parts: str) -> tuple[str, ...]:
        return tuple(name for part in parts for name in head_parts(layer, part, self._model.n_heads))
