"""What inputs are compared with: the mean over a sample, or the counterfactual of the same prompt.

A gradient norm or an attribution is taken of `X - X'`; a reference gives X' for the input of every map, X' W for its
output, and what stands for them at embeddings, whose inputs are one-hot: inner products between tokens and those of the
reference.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gbcd.engine.calibration import TaskMeans
from gbcd.models.captured import EmbeddingGradient, InputRows, MapGradient
from gbcd.models.decoder import Run


@runtime_checkable
class Reference(Protocol):
    """A reference point for the examples of a batch.

    Differences may have the last positions only: those before are zero.
    """

    def difference(self, rows: InputRows) -> Float[Tensor, "example pos d_in"]:
        """`X - X'` of the input of maps, or of a norm's weight."""
        ...

    def output_difference(self, gradient: MapGradient) -> Float[Tensor, "example pos d_out"]:
        """`(X - X') W`, of a map whose output is sliced."""
        ...

    def one_hot_gram(self, gradient: EmbeddingGradient) -> Float[Tensor, "example pos pos"]:
        """Inner products of `e_t - e'_t` of all positions, e the one-hot token."""
        ...

    def at_tokens(self, gradient: EmbeddingGradient) -> Float[Tensor, "example seq pos"]:
        """`<e_t - e'_t, d_logits_a>`: the gradient by the logit of a token less that of its reference."""
        ...

    def token_rows(self, gradient: EmbeddingGradient) -> Float[Tensor, "example pos d_model"]:
        """Rows of the embedding less those of the reference."""
        ...


class MeanReference:
    """Means of one task, for the examples of a batch: a mean by template and position, the example itself left out.

    Beyond the positions that the sample reached, the last mean is returned; examples that long have no centred norm, so
    what stands there is never used. The mean of an example of the sample is that of the others:
    `X - mean of the others = n / (n - 1) (X - mean)`.
    """

    def __init__(
        self, tables: MeanTables, groups: Int[Tensor, " example"], is_member: Bool[Tensor, " example"]
    ) -> None:
        """`groups` index the templates of the sample; `is_member` says whose prompts are part of it."""
        self._tables, self._groups, self._is_member = tables, groups, is_member
        self._scales: dict[bool, Tensor | None] = {}

    def difference(self, rows: InputRows) -> Float[Tensor, "example pos d_in"]:
        """See `Reference`."""
        return self._less(rows, rows.x, self._tables.means[rows.name])

    def output_difference(self, gradient: MapGradient) -> Float[Tensor, "example pos d_out"]:
        """See `Reference`."""
        assert gradient.output is not None
        return self._less(gradient.input, gradient.output, self._tables.outputs(gradient))

    def one_hot_gram(self, gradient: EmbeddingGradient) -> Float[Tensor, "example pos pos"]:
        """See `Reference`; the mean of one-hot tokens is their frequency f: `<e_t - f_t, e_s - f_s>`."""
        at = self._within(gradient.positions)
        expected = self._tables.shares(gradient.ids, at, self._groups)
        group = self._groups.view(-1, 1, 1)
        overlap = self._tables.overlaps[group, at.unsqueeze(2), at.unsqueeze(1)]
        same = (gradient.ids.unsqueeze(2) == gradient.ids.unsqueeze(1)).to(overlap.dtype)
        left_out = self._left_out(at)
        whole = same - expected - expected.transpose(1, 2) + overlap
        return whole * left_out.unsqueeze(1) * left_out.unsqueeze(2)

    def at_tokens(self, gradient: EmbeddingGradient) -> Float[Tensor, "example seq pos"]:
        """See `Reference`."""
        at = self._within(gradient.positions)
        usual = self._tables.usual_logit_gradients(gradient.d_logits, at, self._groups)
        return (gathered(gradient.d_logits, gradient.ids) - usual) * self._left_out(at).unsqueeze(1)

    def token_rows(self, gradient: EmbeddingGradient) -> Float[Tensor, "example pos d_model"]:
        """See `Reference`; the mean row is the frequencies' mean of rows."""
        at = self._within(gradient.positions)
        usual = self._tables.embedded[self._groups.unsqueeze(1), at]
        return (gradient.token_rows - usual) * self._left_out(at).unsqueeze(2)

    def _less(self, rows: InputRows, x: Tensor, table: Float[Tensor, "group pos d"]) -> Tensor:
        if len(table) == 1 and rows.positions.stride(0) == 0:
            mean = table[:, self._within(rows.positions[:1])[0]]
        else:
            mean = table[self._groups.unsqueeze(1), self._within(rows.positions)]
        scale = self._scale(rows)
        return x - mean if scale is None else (x - mean).mul_(scale)

    def _scale(self, rows: InputRows) -> Float[Tensor, "example pos 1"] | None:
        """What the differences of the rows of a batch are multiplied by, where one of them is of the sample."""
        if rows.at_answers not in self._scales:
            found = self._left_out(self._within(rows.positions)).unsqueeze(2)
            self._scales[rows.at_answers] = found if bool(self._is_member.any()) else None
        return self._scales[rows.at_answers]

    def _left_out(self, at: Int[Tensor, "example pos"]) -> Float[Tensor, "example pos"]:
        n = self._tables.counts[self._groups.unsqueeze(1), at]
        return torch.where(self._is_member.unsqueeze(1), n / (n - 1).clamp(min=1), torch.ones_like(n))

    def _within(self, positions: Int[Tensor, "example pos"]) -> Int[Tensor, "example pos"]:
        return positions.clamp(max=self._tables.length - 1)


class MeanTables:
    """The means of one task on the worker's device, and what follows from them once.

    Attributes:
        means: by name of the input, mean by group and position.
        counts: how many prompts of the sample each mean is over.
        overlaps: `<f_t, f_s>` of the frequencies of tokens.
        embedded: mean row of the token embedding.
        length: positions that the sample reaches.
    """

    def __init__(self, task: TaskMeans, embedding: Float[Tensor, "vocab d"]) -> None:
        """Bring the means to the device and type of `embedding`."""
        device, dtype = embedding.device, torch.promote_types(embedding.dtype, torch.float32)
        self.length = task.tokens.shape[1]
        self.means = {name: mean.to(device, dtype) for name, mean in task.means.items()}
        self.counts: Float[Tensor, "group pos"] = task.counts().to(device, dtype)
        tokens, groups = task.tokens.to(device), task.token_groups.to(device)
        # tokens of the sample by group; -1 is nobody's token
        self._samples = [tokens[groups == group] for group in range(len(task.groups))]
        self.overlaps = torch.stack([self._overlap(sample, dtype) for sample in self._samples])
        self.embedded = torch.stack([self._embedded(sample, embedding.to(dtype)) for sample in self._samples])
        self._outputs: dict[tuple[str, ...], Tensor] = {}

    def outputs(self, gradient: MapGradient) -> Float[Tensor, "group pos d_out"]:
        """Mean output of a map, less bias: the mean input times its weight."""
        if gradient.components not in self._outputs:
            mean = self.means[gradient.input.name]
            self._outputs[gradient.components] = mean @ gradient.weight.to(mean.dtype)
        return self._outputs[gradient.components]

    def shares(
        self, ids: Int[Tensor, "example pos"], at: Int[Tensor, "example pos"], groups: Int[Tensor, " example"]
    ) -> Float[Tensor, "example pos pos"]:
        """`f_t(id_s)`: how often the token of position s stands at position t."""
        found = [
            (self._samples[group][:, at[row]].unsqueeze(2) == ids[row]).to(self.overlaps.dtype).sum(0)
            / self.counts[group, at[row]].clamp(min=1).unsqueeze(1)
            for row, group in enumerate(groups.tolist())
        ]
        return torch.stack(found)

    def usual_logit_gradients(
        self,
        d_logits: Float[Tensor, "example seq vocab"],
        at: Int[Tensor, "example pos"],
        groups: Int[Tensor, " example"],
    ) -> Float[Tensor, "example seq pos"]:
        """`<f_t, d_logits_a>`: the logit gradient at the token that usually stands at each position."""
        found: list[Tensor] = []
        for row, group in enumerate(groups.tolist()):
            sample = self._samples[group][:, at[row]]
            real = (sample >= 0).to(d_logits.dtype)
            of_tokens = d_logits[row][:, sample.clamp(min=0)] * real
            found.append(of_tokens.sum(1) / real.sum(0).clamp(min=1))
        return torch.stack(found)

    def _overlap(self, sample: Int[Tensor, "sample pos"], dtype: torch.dtype) -> Float[Tensor, "pos pos"]:
        n_samples, length = sample.shape
        if not n_samples:
            return torch.zeros(length, length, dtype=dtype, device=sample.device)
        columns = sample.T
        counts = (columns >= 0).sum(1).clamp(min=1).to(dtype)
        found = [
            ((columns[t].view(-1, 1, 1) == columns.T.unsqueeze(0)) & (columns[t] >= 0).view(-1, 1, 1)).sum((0, 1))
            for t in range(length)
        ]
        return torch.stack(found).to(dtype) / counts.unsqueeze(0) / counts.unsqueeze(1)

    @staticmethod
    def _embedded(sample: Int[Tensor, "sample pos"], embedding: Float[Tensor, "vocab d"]) -> Float[Tensor, "pos d"]:
        rows = embedding[sample.clamp(min=0)]
        real = (sample >= 0) & torch.isfinite(rows).all(2)
        return torch.where(real.unsqueeze(2), rows, 0).sum(0) / real.sum(0).clamp(min=1).unsqueeze(1)


class RunReference:
    """Another run of the same shape: the counterfactuals, or partners, of a batch's prompts.

    An example of several sequences (a prompt and its twin) is compared with its one counterfactual throughout, position
    by position. The other run may have computed the last positions only (`gbcd.models.tails`).
    """

    def __init__(self, other: Run, token_table: Float[Tensor, "vocab d"], run: Run | None = None) -> None:
        """`other` kept its inputs and outputs, and so did `run`: what is compared where gradients are of a third."""
        self._ids, self._table = other.packed.ids, token_table
        self._maps, self._inputs = other.trace.maps, _kept_inputs(other)
        self._own_maps = None if run is None else run.trace.maps
        self._own_inputs = None if run is None else _kept_inputs(run)

    def difference(self, rows: InputRows) -> Float[Tensor, "example pos d_in"]:
        """See `Reference`."""
        key = rows.name, rows.at_answers
        x = rows.x if self._own_inputs is None else self._own_inputs[key]
        there = aligned(self._inputs[key], rows.positions, rows.at_answers)
        return last(x, there.shape[1]) - there

    def output_difference(self, gradient: MapGradient) -> Float[Tensor, "example pos d_out"]:
        """See `Reference`."""
        y = gradient.output if self._own_maps is None else self._own_maps[gradient.components].output
        rows, output = gradient.input, self._maps[gradient.components].output
        assert y is not None
        assert output is not None
        there = aligned(output, rows.positions, rows.at_answers)
        return last(y, there.shape[1]) - there

    def one_hot_gram(self, gradient: EmbeddingGradient) -> Float[Tensor, "example pos pos"]:
        """See `Reference`."""
        ids, other = gradient.ids, self._tokens(gradient)

        def same(a: Tensor, b: Tensor) -> Tensor:
            return (a.unsqueeze(2) == b.unsqueeze(1)).to(gradient.d_rows.dtype)

        return same(ids, ids) - same(ids, other) - same(other, ids) + same(other, other)

    def at_tokens(self, gradient: EmbeddingGradient) -> Float[Tensor, "example seq pos"]:
        """See `Reference`."""
        return gathered(gradient.d_logits, gradient.ids) - gathered(gradient.d_logits, self._tokens(gradient))

    def token_rows(self, gradient: EmbeddingGradient) -> Float[Tensor, "example pos d_model"]:
        """See `Reference`."""
        return gradient.token_rows - self._table[self._tokens(gradient)]

    def _tokens(self, gradient: EmbeddingGradient) -> Int[Tensor, "example pos"]:
        if gradient.positions.stride(0) == 0:
            return self._ids
        return self._ids.gather(1, gradient.positions.clamp(max=self._ids.shape[1] - 1))


def last(x: Float[Tensor, "example pos d"], n_positions: int) -> Float[Tensor, "example last_pos d"]:
    """The last positions of `x`."""
    return x[:, x.shape[1] - n_positions :]


def gathered(
    d_logits: Float[Tensor, "example seq vocab"], ids: Int[Tensor, "example pos"]
) -> Float[Tensor, "example seq pos"]:
    """Gradients by the logits of tokens."""
    return d_logits.gather(2, ids.unsqueeze(1).expand(-1, d_logits.shape[1], -1))


def aligned(
    other: Float[Tensor, "example row d"], positions: Int[Tensor, "example pos"], at_answers: bool
) -> Float[Tensor, "example last_pos d"]:
    """Rows of a reference's run at `positions`, or at the last of them that it computed.

    These are its one answer for all answers, else position by position.
    """
    if at_answers:
        return other.expand(-1, positions.shape[1], -1)
    if positions.stride(0) == 0:
        return other
    index = positions.clamp(max=other.shape[1] - 1)
    return other.gather(1, index.unsqueeze(2).expand(-1, -1, other.shape[2]))


def _kept_inputs(run: Run) -> dict[tuple[str, bool], Tensor]:
    rows = [kept.input for kept in run.trace.maps.values()] + [*run.trace.norms.values(), run.hidden()]
    return {(one.name, one.at_answers): one.x for one in rows}
