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

import torch
from jaxtyping import Float
from torch import Tensor

from gbcd.engine.gram import widened
from gbcd.models.captured import EmbeddingGradient, Gradient, MapGradient
from gbcd.models.decoder import Decoder, Run
from gbcd.models.packing import Packed
from gbcd.models.pieces import Norm


def recorded(decoder: Decoder) -> tuple[str, ...]:
    """Values of a run that attribution of edges reads."""
    layers = range(decoder.spec.n_layers)
    return ("x0", *(f"a{layer}.z" for layer in layers), *(f"m{layer}.out" for layer in layers))


class EdgeScores:
    """Receives the gradients of one backward pass (`Run.backward`), beside the difference of two runs.

    What every node writes, less what it writes in the other run, lies in one tensor, source by source, so that the
    sources before a reader are a slice of it. The norm before a reader is linear on the way back: for an RMS norm with
    weight s, input x of width d and inverse deviation r, `g = r s h - (r^3 / d) <s h, x> x` of a gradient h by its
    output, so that `a . g = r <a, s h> - (r^3 / d) <s h, x> <a, x>`: the reader's gradients are never formed beside h.
    """

    def __init__(self, decoder: Decoder, run: Run, other: Run) -> None:
        """`run` is passed back; both recorded what `recorded` names, and `run` keeps its norms' inputs."""
        self._decoder, self._run = decoder, run
        self._written = _differences(decoder, run, other)
        self._at_answers = run.packed.at_answers(self._written.flatten(2)).unflatten(2, self._written.shape[2:])
        self._reader_rows: Tensor | None = None
        self._parts_in_rows: set[str] = set()
        self._into_heads: dict[int, Tensor] = {}
        self._d_mlps: dict[int, Tensor] = {}
        self._into_logits: Tensor | None = None

    def __call__(self, gradient: Gradient) -> None:
        """Take in one gradient."""
        if isinstance(gradient, EmbeddingGradient):
            n_sources = self._written.shape[2]
            rows = _one_reader(gradient.d_hidden)
            self._into_logits = self._scores(n_sources, rows, 1, self._decoder.final_norm)
        elif isinstance(gradient, MapGradient) and gradient.axis == "out":
            name = gradient.components[0]
            layer = int(name.split(".")[0][1:])
            if name.startswith("m"):
                before = self._d_mlps.get(layer)
                self._d_mlps[layer] = gradient.d_input if before is None else before + gradient.d_input
            else:
                self._heads(layer, gradient)

    def values(self) -> Float[Tensor, "prompt edge"]:
        """Scores of all edges, after the pass."""
        decoder, n_heads = self._decoder, self._decoder.spec.n_heads
        found: list[Tensor] = []
        for layer in range(decoder.spec.n_layers):
            found.append(self._into_heads.pop(layer).flatten(1))
            mlp = decoder.mlps[layer]
            if mlp is not None:
                n_sources = self._n_before(layer) + (0 if decoder.spec.parallel else n_heads)
                rows = _one_reader(self._d_mlps.pop(layer))
                found.append(self._scores(n_sources, rows, 1, mlp.norm).flatten(1))
        assert self._into_logits is not None
        return torch.cat([*found, self._into_logits.flatten(1)], 1)

    def _heads(self, layer: int, gradient: MapGradient) -> None:
        """Edges into the queries, keys and values of every head, from the gradients of their maps' outputs."""
        n_heads = self._decoder.spec.n_heads
        width = gradient.d_output.shape[2] // len(gradient.components)
        by_part: dict[str, list[int]] = {}
        for index, name in enumerate(gradient.components):
            by_part.setdefault(name.rsplit(".", 1)[1], []).append(index)
        for part, indices in by_part.items():
            shared = self._run.trace.shared.pop(f"a{layer}.{part}", None)
            if shared is None:
                d = gradient.d_output.unflatten(2, (-1, width))[:, :, indices]
            else:
                d = self._before_norm(layer, part, shared)
            weight = gradient.weight.unflatten(1, (-1, width))[:, indices]
            weight = weight.repeat_interleave(n_heads // len(indices), 1)
            into = torch.einsum("erhk,dhk->erhd", d.to(weight.dtype), weight)
            place = "qkv".index(part) * n_heads
            # in the last block, queries stand at the answers alone
            rows = self._rows(3 * n_heads)[:, :, place : place + n_heads]
            _put(self._run.packed, rows.zero_() if into.shape[1] != rows.shape[1] else rows, into)
            self._parts_in_rows.add(part)
        if len(self._parts_in_rows) == len("qkv"):
            norm = self._decoder.attentions[layer].norm
            found = self._scores(self._n_before(layer), self._rows(3 * n_heads), 3 * n_heads, norm)
            self._into_heads[layer] = found.unflatten(1, (3, n_heads)).transpose(1, 2)
            self._parts_in_rows = set()

    def _rows(self, n_readers: int) -> Float[Tensor, "prompt pos reader_and_one d_model"]:
        """Where gradients of readers are collected, with a place for the input of their norm."""
        if self._reader_rows is None:
            n_prompts, length, _, width = self._written.shape
            self._reader_rows = self._written.new_zeros(n_prompts, length, n_readers + 1, width)
        return self._reader_rows

    def _before_norm(
        self, layer: int, part: str, d: Float[Tensor, "prompt pos head d_head"]
    ) -> Float[Tensor, "prompt pos head d_head"]:
        """Gradients of keys, one for every head of queries, back through their norm where the model has one."""
        norm = self._decoder.attentions[layer].k_norm if part == "k" else None
        if norm is None:
            return d
        x = self._run.trace.sources[norm.component]
        x = x.repeat_interleave(d.shape[2] // x.shape[2], 2)
        _, mean, rstd = norm(x)
        return norm.back(d.contiguous(), x, mean, rstd, self._run.trace.rules.fixed_norms)

    def _n_before(self, layer: int) -> int:
        """How many sources stand before `layer`."""
        n_mlps = sum(mlp is not None for mlp in self._decoder.mlps[:layer])
        return 1 + layer * self._decoder.spec.n_heads + n_mlps

    def _scores(
        self, n_sources: int, rows: Float[Tensor, "prompt row reader_and_one d"], n_readers: int, norm: Norm | None
    ) -> Float[Tensor, "prompt reader source"]:
        """Inner products of what sources wrote and readers' gradients by the output of their norm.

        The last of `rows` is free: the norm's input takes it, so that sources are read once. `rows` are changed.
        """
        at_answers = rows.shape[1] != self._run.packed.ids.shape[1]
        written = (self._at_answers if at_answers else self._written)[:, :, :n_sources].transpose(2, 3)
        if norm is None:
            return torch.matmul(rows, written)[:, :, :n_readers].sum(1)
        x = self._run.trace.sources[norm.component]
        x = widened(self._run.packed.at_answers(x) if at_answers and x.shape[1] != rows.shape[1] else x)
        rstd = norm.inverse_deviation(x)
        rows.mul_((norm.scale * rstd).unsqueeze(2))
        if norm.kind == "layer":
            x = x - x.mean(-1, keepdim=True)
            rows.sub_(rows.mean(-1, keepdim=True))
        rows[:, :, n_readers] = x
        products = torch.matmul(rows, written)
        found = products[:, :, :n_readers].sum(1)
        if self._run.trace.rules.fixed_norms:
            return found
        along = torch.matmul(rows, x.unsqueeze(3))[:, :, :n_readers, 0] * rstd.square() / x.shape[2]
        return found - torch.matmul(along.transpose(1, 2), products[:, :, n_readers])


def _one_reader(d: Float[Tensor, "prompt row d"]) -> Float[Tensor, "prompt row reader_and_one d"]:
    return torch.nn.functional.pad(widened(d).unsqueeze(2), (0, 0, 0, 1))


def _differences(decoder: Decoder, run: Run, other: Run) -> Float[Tensor, "prompt pos source d_model"]:
    """What every node writes to the residual stream, less what it writes in the other run, in the order of sources.

    What was written at the answers alone (last block) is zero elsewhere.
    """
    n_heads, n_mlps = decoder.spec.n_heads, sum(mlp is not None for mlp in decoder.mlps)
    x0 = _aligned(run, run.values["x0"], other.values["x0"])
    n_sources = 1 + decoder.spec.n_layers * n_heads + n_mlps
    wide = torch.promote_types(x0.dtype, torch.float32)
    found = torch.zeros(*x0.shape[:2], n_sources, x0.shape[2], dtype=wide, device=x0.device)
    found[:, :, 0] = x0
    at = 1
    for layer in range(decoder.spec.n_layers):
        here, there = (decoder.written_by_heads(layer, one.values[f"a{layer}.z"]) for one in (run, other))
        heads = _aligned(run, here.flatten(2), there.flatten(2)).unflatten(2, (n_heads, -1))
        _put(run.packed, found[:, :, at : at + n_heads], heads)
        at += n_heads
        if decoder.mlps[layer] is not None:
            name = f"m{layer}.out"
            mlp = _aligned(run, run.values[name].squeeze(2), other.values[name].squeeze(2))
            _put(run.packed, found[:, :, at : at + 1], mlp.unsqueeze(2))
            at += 1
    return found


def _put(
    packed: Packed, place: Float[Tensor, "prompt pos source d"], rows: Float[Tensor, "prompt row source d"]
) -> None:
    if rows.shape[1] == place.shape[1]:
        place.copy_(rows)
    else:
        index = packed.answers[:, :, None, None].expand(-1, -1, *rows.shape[2:])
        place.scatter_(1, index, rows.to(place.dtype))


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
