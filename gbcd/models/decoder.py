"""The one way to run a model: an explicit decoder, read from top to bottom, driven by the spec of its family.

A run is a forward pass that keeps its graph. From it come

- the gradients of any number of losses: `backward` walks back once for each, and hands out inputs, outputs and
gradients
  of every map and norm on the way (`captured.py`);
- what a run without a graph leaves: inputs and outputs of maps (`keep`), values of nodes (`record`);
- patched runs: `patches` replaces values of nodes, of some examples of the batch each; `start` begins at any block.

The answer is read at one token of each sequence, so queries, attention output and MLP of the last block exist for that
token alone, and the unembedding reads few rows. Edges are patched in `edge_runs.py`, of the same pieces.

How this compares with hooks on the library's own modules, and why it is the one that stayed: `docs/architectures.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gbcd.models.captured import EmbeddingGradient, Gradient, InputRows
from gbcd.models.packing import Packed
from gbcd.models.pieces import LinearMap, Norm, Trace, activated, mapped, normed, passed, softmax, weight_of
from gbcd.models.rules import PLAIN, Rules
from gbcd.models.spec import AttentionSpec, MapSpec, MlpSpec, ModelSpec, NormSpec


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


class Start(NamedTuple):
    """Where a run begins: the residual stream before block `layer`."""

    layer: int
    residual: Float[Tensor, "example pos d_model"]


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


@dataclass(frozen=True)
class Attention:
    """Attention of one block with its weights, those of queries and the others apart, too."""

    spec: AttentionSpec
    maps: tuple[LinearMap, ...]
    query_maps: tuple[LinearMap, ...]
    other_maps: tuple[LinearMap, ...]
    out: LinearMap
    norm: Norm | None
    q_norm: Norm | None
    k_norm: Norm | None
    post_norm: Norm | None


@dataclass(frozen=True)
class Mlp:
    """MLP of one block with its weights; see `MlpSpec`."""

    spec: MlpSpec
    maps: tuple[LinearMap, ...]
    out: LinearMap
    norm: Norm | None
    post_norm: Norm | None


class Rows(NamedTuple):
    """The tokens that part of a pass computes: all of them, or those at the answers."""

    packed: Packed
    at_answers: bool

    @property
    def positions(self) -> Int[Tensor, "example row"]:
        """Position of each token."""
        if not self.at_answers:
            return self.packed.positions
        return self.packed.positions.gather(1, self.packed.answers)

    def of(self, x: Float[Tensor, "example pos d"]) -> Float[Tensor, "example row d"]:
        """These tokens' rows of `x`."""
        return self.packed.at_answers(x) if self.at_answers else x

    def named(self, name: str, x: Float[Tensor, "example row *d"]) -> InputRows:
        """`x` as an input of maps."""
        return InputRows(name, x.detach().flatten(2), self.positions, self.at_answers)


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
        self.attentions = tuple(_attention(model, one) for one in spec.attentions)
        self.mlps = tuple(None if one is None else _mlp(model, one) for one in spec.mlps)
        self.final_norm = _norm(model, spec.final_norm)

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

    def written_by_heads(
        self, layer: int, z: Float[Tensor, "example row head d_head"]
    ) -> Float[Tensor, "example row head d_model"]:
        """What each head adds to the residual stream; where a norm follows the block, its share of the normed sum."""
        attention = self.attentions[layer]
        written = torch.einsum("erhk,hkd->erhd", z, attention.out.weight.unflatten(0, (z.shape[2], -1)))
        norm = attention.post_norm
        if norm is None:
            return written
        rstd = norm.inverse_deviation(attention.out(z.flatten(2)))
        return (written * rstd.unsqueeze(2) * norm.scale).to(z.dtype)

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
        logits: at the answers, without graph.
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
        self.logits: Float[Tensor, "example seq vocab"] = decoder.logits(self._hidden.detach())

    def backward(
        self, d_logits: Float[Tensor, "example seq vocab"], receive: Callable[[Gradient], None]
    ) -> Float[Tensor, "example pos d_model"]:
        """Walk back from `d_logits`, and hand every map's, norm's and embedding's gradient to `receive`.

        `d_logits` may cover only the first of several sequences.

        Returns:
            The gradient by the residual stream where the pass began.
        """
        missing = self.logits.shape[1] - d_logits.shape[1]
        d_logits = torch.nn.functional.pad(d_logits, (0, 0, 0, missing)) if missing else d_logits
        decoder = self._decoder
        if decoder.spec.embedding.logit_cap is not None:
            d_logits = d_logits * (1 - (self.logits / decoder.spec.embedding.logit_cap).square())
        d_hidden = by_used_rows(d_logits, decoder.unembedding)
        self.trace.receive = receive
        try:
            (d_root,) = torch.autograd.grad(self._hidden, self._root, d_hidden, retain_graph=True)
        finally:
            self.trace.receive = None
        receive(self._embedding_gradient(d_root, d_logits, d_hidden))
        return d_root

    def inputs(self) -> list[InputRows]:
        """Every input of maps and norm weights, once each, of a run that keeps them.

        Last comes what the unembedding reads, at every token where the run computed every token.
        """
        kept = {id(one.input): one.input for one in self.trace.maps.values()}
        read = Rows(self.packed, self._everywhere is self._hidden).named("unembed", self._everywhere)
        return [*kept.values(), *self.trace.norms.values(), read]

    def hidden(self) -> InputRows:
        """What the unembedding reads."""
        return Rows(self.packed, True).named("unembed", self._hidden)

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


class Forward:
    """One forward pass, block by block."""

    def __init__(self, decoder: Decoder, packed: Packed, options: Options) -> None:
        """Nothing runs yet."""
        self.decoder, self.packed, self.options = decoder, packed, options
        self.trace = Trace(options.rules, keep=options.keep, keep_sources=options.edges)
        self.values: dict[str, Tensor] = {}
        self._everything = Rows(packed, False)
        self._masks: dict[int | None, Float[Tensor, "#example 1 pos pos"]] = {}

    def blocks(self, first: int, x: Float[Tensor, "example pos d"]) -> Float[Tensor, "example row d"]:
        """Every block from `first` on, and the final norm."""
        decoder, n_layers = self.decoder, self.decoder.spec.n_layers
        whole = self.options.every_token or decoder.spec.reads_every_token
        rows = self._everything
        for layer in range(first, n_layers):
            rows = Rows(self.packed, layer == n_layers - 1 and not whole)
            x = self._block(layer, x, rows)
        if not rows.at_answers and not whole:
            rows, x = Rows(self.packed, True), self.packed.at_answers(x)
        if decoder.final_norm is None:
            return x
        return self.normed(x, decoder.final_norm, rows)

    def _block(self, layer: int, x: Float[Tensor, "example pos d"], rows: Rows) -> Float[Tensor, "example row d"]:
        self._record(f"x{layer}", x)
        attention, mlp = self.decoder.attentions[layer], self.decoder.mlps[layer]
        stream = rows.of(x)
        after = stream + self._attention(layer, attention, x, rows)
        if mlp is None:
            return after
        return after + self.mlp(layer, mlp, stream if self.decoder.spec.parallel else after, rows)

    def _attention(
        self, layer: int, block: Attention, x: Float[Tensor, "example pos d"], rows: Rows
    ) -> Float[Tensor, "example row d"]:
        normal = self.normed(x, block.norm, self._everything)
        read = self._everything.named(f"a{layer}.qkv", normal)
        if rows.at_answers:
            at_answers = rows.of(normal)
            parts = self._parts(at_answers, block.query_maps, rows.named(f"a{layer}.qkv", at_answers))
            parts |= self._parts(normal, block.other_maps, read)
        else:
            parts = self._parts(normal, block.maps, read)
        q, k, v = (self._patched(f"a{layer}.{part}", parts[part]) for part in "qkv")
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
        mask = mask if not rows.at_answers else rows.of(mask.squeeze(1).expand(shape[0], -1, -1)).unsqueeze(1)
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


def by_used_rows(
    d_logits: Float[Tensor, "example seq vocab"], unembedding: Float[Tensor, "vocab d"]
) -> Float[Tensor, "example seq d"]:
    """`d_logits U` by the rows of U that the loss reads: a few hundred of them where it compares two tokens."""
    used = (d_logits != 0).flatten(0, 1).any(0).nonzero().squeeze(1)
    if 4 * len(used) > len(unembedding):
        return d_logits @ unembedding
    return d_logits[..., used] @ unembedding[used]


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


def _parameter(model: nn.Module, module: str) -> Tensor:
    return model.get_parameter(f"{module}.weight").detach()


def _norm(model: nn.Module, spec: NormSpec | None) -> Norm | None:
    return None if spec is None else Norm.of(model, spec)


def _maps(model: nn.Module, specs: tuple[MapSpec, ...]) -> tuple[LinearMap, ...]:
    return tuple(LinearMap.of(model, spec) for spec in specs)


def _attention(model: nn.Module, spec: AttentionSpec) -> Attention:
    maps = _maps(model, spec.maps)
    split = {True: [], False: []}
    for linear in maps:
        for wanted in (True, False):
            indices = [i for i, name in enumerate(linear.components) if name.endswith(".q") == wanted]
            if indices:
                split[wanted].append(linear.slices(indices))
    norms = (_norm(model, one) for one in (spec.norm, spec.q_norm, spec.k_norm, spec.post_norm))
    return Attention(spec, maps, tuple(split[True]), tuple(split[False]), LinearMap.of(model, spec.out), *norms)


def _mlp(model: nn.Module, spec: MlpSpec) -> Mlp:
    norms = _norm(model, spec.norm), _norm(model, spec.post_norm)
    return Mlp(spec, _maps(model, spec.maps), LinearMap.of(model, spec.out), *norms)
