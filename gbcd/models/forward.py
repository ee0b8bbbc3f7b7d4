"""One forward pass, block by block: maps, norms and attention, and what is replaced, recorded and kept on the way.

The answer is read at one token of each sequence, so queries, attention output and MLP of the last block exist for that
token alone, unless every token is asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gbcd.models.blocks import Attention, Mlp
from gbcd.models.captured import InputRows
from gbcd.models.nonlinear import activated, passed, softmax
from gbcd.models.packing import Packed
from gbcd.models.pieces import LinearMap, Norm, Trace, mapped, normed
from gbcd.models.rules import PLAIN, Rules
from gbcd.models.spec import AttentionSpec

if TYPE_CHECKING:
    from gbcd.models.decoder import Decoder


class SlicePatch(NamedTuple):
    """What takes the place of slices of a value.

    Attributes:
        value: the other values; where they are the same for all examples, one of them.
        where: which slices (heads, groups; 1 of an MLP) of which examples are replaced.
    """

    value: Float[Tensor, "#example #pos slice width"]
    where: Bool[Tensor, "example slice"]


#: Patches by the name of the value: `a3.q`, `a3.k`, `a3.v`, `a3.z` (what heads hand to the attention output), `m3.in`,
#: `m3.gate`, `m3.up`, and `m3.out` (what the MLP adds to the residual stream).
Patches = Mapping[str, SlicePatch]


@dataclass(frozen=True)
class Options:
    """What a run does beside computing logits.

    Attributes:
        rules: backward rules.
        graph: keep what a backward pass needs.
        keep: keep inputs and outputs of every map and norm in `Run.trace`.
        record: names of values to keep in `Run.values`: those of `Patches`, and `x3`, the residual stream before block
        3. patches: values that are replaced.
        every_token: compute every token in the last block too.
        edges: keep what attribution of edges reads: inputs of norms, and gradients of keys and values apart for every
        head
            of queries.
    """

    rules: Rules = PLAIN
    graph: bool = False
    keep: bool = False
    record: Collection[str] = ()
    patches: Patches = field(default_factory=dict[str, SlicePatch])
    every_token: bool = False
    edges: bool = False


class Rows(NamedTuple):
    """The tokens that part of a pass computes.

    Attributes:
        packed: the examples.
        at: where they stand; None is all of them.
        at_answers: whether they are those at the answers.
    """

    packed: Packed
    at: Int[Tensor, "example row"] | None = None
    at_answers: bool = False

    @classmethod
    def answers(cls, packed: Packed) -> Rows:
        """Those at the answers."""
        return cls(packed, packed.answers, at_answers=True)

    @property
    def positions(self) -> Int[Tensor, "example row"]:
        """Position of each token."""
        positions = self.packed.positions
        if self.at is None:
            return positions
        if positions.stride(0) == self.at.stride(0) == 0:
            return positions[:1, self.at[0]].expand(len(positions), -1)
        return positions.gather(1, self.at)

    def of(self, x: Float[Tensor, "example pos d"]) -> Float[Tensor, "example row d"]:
        """These tokens' rows of `x`."""
        return x if self.at is None else x.gather(1, self.at.unsqueeze(2).expand(-1, -1, x.shape[2]))

    def named(self, name: str, x: Float[Tensor, "example row *d"]) -> InputRows:
        """`x` as an input of maps."""
        return InputRows(name, x.detach().flatten(2), self.positions, self.at_answers)


class Forward:
    """One forward pass, block by block."""

    def __init__(self, decoder: Decoder, packed: Packed, options: Options) -> None:
        """Nothing runs yet."""
        self.decoder, self.packed, self.options = decoder, packed, options
        self.trace = Trace(options.rules, keep=options.keep, keep_sources=options.edges)
        self.values: dict[str, Tensor] = {}
        self._everything = self._computed = Rows(packed)
        self._answers = Rows.answers(packed)
        self._masks: dict[int | None, Float[Tensor, "#example 1 pos pos"]] = {}

    def blocks(self, first: int, x: Float[Tensor, "example pos d"]) -> Float[Tensor, "example row d"]:
        """Every block from `first` on, and the final norm."""
        decoder, n_layers = self.decoder, self.decoder.spec.n_layers
        whole = self.options.every_token or decoder.spec.reads_every_token
        last = self._computed if whole else self._answers
        for layer in range(first, n_layers):
            x = self._block(layer, x, last if layer == n_layers - 1 else self._computed)
        if first == n_layers:
            x = self._within(x, last)
        return self.normed(x, decoder.final_norm, last)

    def _within(self, x: Float[Tensor, "example computed d"], rows: Rows) -> Float[Tensor, "example row d"]:
        """Some rows of `x`, which has those that the pass computes."""
        return x if rows is self._computed else rows.of(x)

    def _seen(self, name: str, values: Float[Tensor, "example computed slice width"]) -> Tensor:
        """Keys or values of all tokens, from those that the pass computes."""
        return values

    def _block(self, layer: int, x: Float[Tensor, "example computed d"], rows: Rows) -> Float[Tensor, "example row d"]:
        self._record(f"x{layer}", x)
        attention, mlp = self.decoder.attentions[layer], self.decoder.mlps[layer]
        stream = self._within(x, rows)
        after = stream + self._attention(layer, attention, x, rows)
        if mlp is None:
            return after
        return after + self.mlp(layer, mlp, stream if self.decoder.spec.parallel else after, rows)

    def _attention(
        self, layer: int, block: Attention, x: Float[Tensor, "example computed d"], rows: Rows
    ) -> Float[Tensor, "example row d"]:
        normal = self.normed(x, block.norm, self._computed)
        read = self._computed.named(f"a{layer}.qkv", normal)
        if rows is not self._computed:
            at_answers = self._within(normal, rows)
            parts = self._parts(at_answers, block.query_maps, rows.named(f"a{layer}.qkv", at_answers))
            parts |= self._parts(normal, block.other_maps, read)
        else:
            parts = self._parts(normal, block.maps, read)
        q, k, v = (self._patched(f"a{layer}.{part}", parts[part]) for part in "qkv")
        k, v = self._seen(f"a{layer}.k", k), self._seen(f"a{layer}.v", v)
        z = self._patched(f"a{layer}.z", self.mixed(layer, block, q, k, v, rows)).flatten(2)
        written = mapped(z, block.out, rows.named(f"a{layer}.o", z), self.trace)
        return written if block.post_norm is None else self.normed(written, block.post_norm, rows)

    def mixed(
        self,
        layer: int,
        block: Attention,
        q: Float[Tensor, "example row head d_head"],
        k: Float[Tensor, "example pos group d_head"],
        v: Float[Tensor, "example pos group d_head"],
        rows: Rows,
    ) -> Float[Tensor, "example row head d_head"]:
        """Attention between maps: norms and rotation of queries and keys, scores, softmax, weighted values."""
        spec, rules = block.spec, self.options.rules
        if block.q_norm is not None:
            q = self.normed(q, block.q_norm, rows)
        if block.k_norm is not None:
            k = self.normed(k, block.k_norm, self._everything)
        if self.options.edges and k.shape[2] != q.shape[2]:
            k, v = (_per_query_head(values, q.shape[2], self.trace, f"a{layer}.{part}")
                    for values, part in ((k, "k"), (v, "v")))  # fmt: skip
        if spec.rotary is not None:
            q, k = self._rotated(q, spec, rows), self._rotated(k, spec, self._everything)
        # one minus the largest probability of a sure head has no digits in bfloat16
        wide = torch.promote_types(q.dtype, torch.float32)
        shape = q.shape
        q, k, v = passed(q, rules.query_key_share), passed(k, rules.query_key_share), passed(v, rules.value_share)
        q, k, v = _by_group(q.to(wide) * spec.scale, k.shape[2]), k.to(wide).transpose(1, 2), v.to(wide).transpose(1, 2)
        scores = torch.matmul(q, k.transpose(2, 3))
        if spec.cap is not None:
            scores = spec.cap * torch.tanh(scores / spec.cap)
        mask = self._mask(spec.window)
        mask = mask if rows.at is None else rows.of(mask.squeeze(1).expand(shape[0], -1, -1)).unsqueeze(1)
        scores = scores.unflatten(2, (-1, shape[1])) + mask.unsqueeze(1)
        pattern = softmax(scores, rules.softmax_temperature).flatten(2, 3)
        z = torch.matmul(pattern, v).unflatten(2, (-1, shape[1]))
        return z.permute(0, 3, 1, 2, 4).flatten(2, 3).to(self.decoder.token_table.dtype)

    def mlp(
        self, layer: int, block: Mlp, stream: Float[Tensor, "example row d"], rows: Rows
    ) -> Float[Tensor, "example row d"]:
        """What the MLP adds to the residual stream, from what it reads of it."""
        normal = self.normed(stream, block.norm, rows)
        parts = self._parts(normal, block.maps, rows.named(f"m{layer}.in", normal))
        parts = {part: self._patched(f"m{layer}.{part}", value).flatten(2) for part, value in parts.items()}
        rules, name = self.options.rules, block.spec.activation
        if "gate" in parts:
            share = 0.5 if rules.split_gates else 1.0
            gated = activated(parts["gate"], name, rules.fixed_activations) * parts["up"]
            act = passed(gated, share)
        else:
            act = activated(parts["in"], name, rules.fixed_activations)
        written = mapped(act, block.out, rows.named(f"m{layer}.out", act), self.trace)
        if block.post_norm is not None:
            written = self.normed(written, block.post_norm, rows)
        return self._patched(f"m{layer}.out", written.unsqueeze(2)).squeeze(2)

    def _parts(
        self, x: Float[Tensor, "example row d"], maps: tuple[LinearMap, ...], read: InputRows
    ) -> dict[str, Float[Tensor, "example row slice width"]]:
        """Outputs of maps by part: queries, keys and values of all heads or groups; gate and up."""
        found: dict[str, Tensor] = {}
        for linear in maps:
            slices = mapped(x, linear, read, self.trace).unflatten(2, (len(linear.components), -1))
            for part, which in linear.parts.items():
                found[part] = slices[:, :, which]
        return found

    def normed(self, x: Float[Tensor, "example row *d"], norm: Norm | None, rows: Rows) -> Tensor:
        """`x` after a norm, if there is one."""
        if norm is None:
            return x
        return normed(x, norm, rows.named(norm.component, x), self.trace)

    def _patched(
        self, name: str, value: Float[Tensor, "example row slice width"]
    ) -> Float[Tensor, "example row slice width"]:
        if name in self.options.patches:
            other, where = self.options.patches[name]
            value = torch.where(where[:, None, :, None], other.to(value.dtype), value)
        self._record(name, value)
        return value

    def _record(self, name: str, value: Tensor) -> None:
        if name in self.options.record:
            self.values[name] = value.detach()

    def _mask(self, window: int | None) -> Float[Tensor, "#example 1 pos pos"]:
        """Zero where a token is seen, minus infinity elsewhere."""
        if window not in self._masks:
            visible, positions = self.packed.visible, self.packed.positions
            if window is not None:
                positions = positions[:1] if positions.stride(0) == 0 else positions
                visible = visible & (positions.unsqueeze(2) - positions.unsqueeze(1) < window)
            wide = torch.promote_types(self.decoder.token_table.dtype, torch.float32)
            mask = torch.zeros(visible.shape, dtype=wide, device=visible.device)
            # padding sees itself at least, so that no row is without a number
            eye = torch.eye(visible.shape[1], dtype=torch.bool, device=visible.device)
            self._masks[window] = mask.masked_fill_(~(visible | eye), -torch.inf).unsqueeze(1)
        return self._masks[window]

    def _rotated(
        self, x: Float[Tensor, "example row slice d_head"], spec: AttentionSpec, rows: Rows
    ) -> Float[Tensor, "example row slice d_head"]:
        assert spec.rotary is not None
        positions = rows.positions
        positions = positions[:1] if positions.stride(0) == 0 else positions
        cos, sin = (table[positions].unsqueeze(2).to(x) for table in spec.rotary(self.packed.ids.shape[1]))
        return rotated(x, cos, sin)


def rotated(
    x: Float[Tensor, "example row slice d_head"],
    cos: Float[Tensor, "#example row 1 d_rotary"],
    sin: Float[Tensor, "#example row 1 d_rotary"],
) -> Float[Tensor, "example row slice d_head"]:
    """Rotary position embedding of the first `d_rotary` dimensions, halves paired (Su et al. 2021, arXiv
    2104.09864)."""
    width = cos.shape[-1]
    first, second = x[..., : width // 2], x[..., width // 2 : width]
    cos, sin = cos[..., : width // 2], sin[..., : width // 2]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, x[..., width:]], -1)


def _by_group(
    q: Float[Tensor, "example row head d_head"], n_groups: int
) -> Float[Tensor, "example group rows_of_group d_head"]:
    """Queries of the heads that share keys and values, end to end."""
    return q.unflatten(2, (n_groups, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)


def _per_query_head(
    values: Float[Tensor, "example pos group d_head"], n_heads: int, trace: Trace, name: str
) -> Float[Tensor, "example pos head d_head"]:
    repeated = values.repeat_interleave(n_heads // values.shape[2], 2)
    if repeated.requires_grad:
        repeated.register_hook(lambda d: trace.keep_shared(name, d))
    return repeated
