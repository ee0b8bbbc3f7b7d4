"""Mean inputs of every tapped map, measured once on a sample of the study's prompts and then frozen.

The centred norm takes `X - Xbar` for X: what any prompt would give is removed, what depends on the prompt stays. `Xbar`
is the mean over the sample at the same position, either over all prompts of the task or over those of the same
template. A position that too few prompts of the sample reach has no mean, so prompts that long have no centred norm;
they are named, not guessed.

The input of the token embedding is one-hot, so its mean is the frequency of each token at each position; it is kept as
the sample's tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gbcd.models.captured import InputRows
from gbcd.prompting.tokens import EncodedPrompt

Centering = Literal["position", "template"]

#: A mean over fewer prompts than this says more about those prompts than about the task.
MIN_PROMPTS = 8


@dataclass(frozen=True)
class TaskMeans:
    """Means over the sample's prompts of one task.

    Attributes:
        groups: what is averaged apart: the templates, or one group of everything.
        means: by name of the input, mean by group and position; zero where no prompt of the sample reaches.
        tokens: the sample's tokens, -1 past a prompt's end.
        token_groups: the group of each row.
        members: the prompt of each row, by id: of it, the mean of the others is taken away.
    """

    groups: tuple[str, ...]
    means: dict[str, Float[Tensor, "group pos d_in"]]
    tokens: Int[Tensor, "sample pos"]
    token_groups: Int[Tensor, " sample"]
    members: tuple[str, ...]

    def counts(self) -> Int[Tensor, "group pos"]:
        """How many prompts of the sample reach each position."""
        one_hot = torch.nn.functional.one_hot(self.token_groups, len(self.groups))
        return one_hot.T @ (self.tokens >= 0).long()

    def reach(self) -> dict[str, int]:
        """By group, the number of leading positions with a mean over at least `MIN_PROMPTS` prompts."""
        return dict(zip(self.groups, (self.counts() >= MIN_PROMPTS).cumprod(1).sum(1).tolist(), strict=True))


@dataclass(frozen=True)
class Calibration:
    """The means of every task of a study, as they are stored with its results."""

    centering: Centering
    tasks: dict[str, TaskMeans]

    def group_of(self, template: str) -> str:
        """Group to which prompts of `template` belong."""
        return template if self.centering == "template" else ""


class MeanAccumulator:
    """Adds up the inputs of one task's sample, batch by batch."""

    def __init__(self, groups: Sequence[str], length: int) -> None:
        """Start empty; `length` is that of the longest prompt of the sample."""
        self._groups, self._length = tuple(groups), length
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def add(self, rows: InputRows, real: Bool[Tensor, "example pos"], group: Int[Tensor, " example"]) -> None:
        """Add the rows of a batch; `real` is False at padding, `group` the index of each example's group.

        Rows that hold a value that is not finite are left out: one such prompt would leave none of them a mean.
        """
        example, row = (real & torch.isfinite(rows.x).all(2)).nonzero(as_tuple=True)
        index = group[example] * self._length + rows.positions[example, row]
        size = len(self._groups) * self._length
        if rows.name not in self._sums:
            self._sums[rows.name] = rows.x.new_zeros(size, rows.x.shape[2], dtype=torch.float64)
            self._counts[rows.name] = rows.x.new_zeros(size, dtype=torch.float64)
        self._sums[rows.name].index_add_(0, index, rows.x[example, row].double())
        self._counts[rows.name].index_add_(0, index, index.new_ones(len(index)).double())

    def means(self) -> dict[str, Float[Tensor, "group pos d_in"]]:
        """The means in float32, on the processor; the sums are given up one by one."""
        found: dict[str, Tensor] = {}
        for name, counts in self._counts.items():
            mean = self._sums.pop(name).div_(counts.clamp(min=1).unsqueeze(1))
            found[name] = mean.view(len(self._groups), self._length, -1).float().cpu()
        return found


def means_of(
    sample: Sequence[EncodedPrompt], centering: Centering, inputs: Iterable[tuple[range, Sequence[InputRows]]]
) -> TaskMeans:
    """The means of one task.

    Args:
        sample: its prompts.
        centering: what is averaged apart.
        inputs: by the rows of `sample` that they are of; a prompt that is in none of them is in no mean.
    """
    group_of = [prompt.prompt.template if centering == "template" else "" for prompt in sample]
    groups, length = tuple(sorted(set(group_of))), max(len(prompt.ids) for prompt in sample)
    index = torch.tensor([groups.index(group) for group in group_of])
    sums = MeanAccumulator(groups, length)
    used: list[int] = []
    for rows, of_batch in inputs:
        device = of_batch[0].x.device
        lengths = torch.tensor([len(sample[row].ids) for row in rows], device=device)
        for one in of_batch:
            real = torch.arange(one.x.shape[1], device=device) < lengths.unsqueeze(1)
            sums.add(one, real, index[rows.start : rows.stop].to(device))
        used += rows
    tokens = torch.full((len(used), length), -1)
    for number, row in enumerate(used):
        tokens[number, : len(sample[row].ids)] = torch.tensor(sample[row].ids)
    members = tuple(sample[row].prompt.id for row in used)
    return TaskMeans(groups, sums.means(), tokens, index[used], members)
