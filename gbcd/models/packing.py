"""Lay examples out as padded tensors: an example is one sequence, or several whose gradients are added.

The loss over a prompt and its twin is a sum over two sequences that differ in one token. Everything before that token
is the same for both, so it is computed once: the example is stored as a tree, `prefix + rest of the first + rest of the
second`, in which each token sees its own branch and the prefix only. The loss is a sum over the branches, so gradients
at the shared prefix add up by themselves and `G = X^T D` over the tree's tokens is exactly the sum over both sequences.

Padding stands on the right and nothing real can see it, so its output gradients are exactly zero and the Gram
matrices need no mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Example = Sequence[tuple[int, ...]]
"""The sequences of one example; each one's answer is read at its last token."""


@dataclass(frozen=True)
class Packed:
    """Examples as tensors.

    Attributes:
        ids: token ids; padding is token 0.
        positions: position of each token in its own sequence, whatever at padding; examples of one sequence have the
            same, and share one row of memory (stride 0).
        visible: `visible[e, t, s]` is True where token t of example e attends to token s; one example for all where
            they have the same.
        answers: index of each sequence's last token, or every index where the model answers at every token.
    """

    ids: Int[Tensor, "example pos"]
    positions: Int[Tensor, "example pos"]
    visible: Bool[Tensor, "#example pos pos"]
    answers: Int[Tensor, "example seq"]

    def at_answers(self, x: Float[Tensor, "example pos d"]) -> Float[Tensor, "example seq d"]:
        """The rows of `x` at the answers."""
        return x.gather(1, self.answers.unsqueeze(2).expand(-1, -1, x.shape[2]))

    def repeated(self, times: int) -> Packed:
        """Every example `times` times, one after another."""
        many = len(self.visible) > 1
        positions = self.positions
        if positions.stride(0) == 0:
            positions = positions[:1].expand(len(self.ids) * times, -1)
        else:
            positions = positions.repeat_interleave(times, 0)
        return Packed(
            self.ids.repeat_interleave(times, 0),
            positions,
            self.visible.repeat_interleave(times, 0) if many else self.visible,
            self.answers.repeat_interleave(times, 0),
        )


def pack(
    examples: Sequence[Example], device: torch.device, *, causal: bool = True, every_token: bool = False
) -> Packed:
    """Pack examples of equally many sequences, sharing the prefix within each.

    Args:
        examples: what to lay out.
        device: where the tensors lie.
        causal: whether tokens see only what stands before them; without, all tokens of the one sequence.
        every_token: whether the model answers at every token.

    Raises:
        ValueError: no example, or examples of different numbers of sequences (a fault of the caller).
    """
    if len({len(example) for example in examples}) != 1:
        raise ValueError("a batch needs at least one example, and all its examples the same number of sequences")
    trees = [_tree(example) for example in examples]
    width = max(len(tree.ids) for tree in trees)
    ids = torch.zeros(len(trees), width, dtype=torch.int64)
    for row, tree in enumerate(trees):
        ids[row, : len(tree.ids)] = torch.tensor(tree.ids)
    answers = torch.tensor([tree.answers for tree in trees])
    if every_token:
        answers = torch.arange(width).expand(len(trees), -1)
    if len(examples[0]) == 1:
        # stride 0 for one example, too, which `expand` would not give
        positions = torch.arange(width, device=device).as_strided((len(trees), width), (0, 1))
        visible = torch.ones(1, width, width, dtype=torch.bool).tril()
        if not causal:
            lengths = torch.tensor([len(tree.ids) for tree in trees])
            visible = (torch.arange(width) < lengths.unsqueeze(1)).unsqueeze(1).expand(-1, width, -1)
        return Packed(ids.to(device), positions, visible.to(device), answers.to(device))
    positions, branch = torch.zeros_like(ids), torch.full_like(ids, -1)
    for row, tree in enumerate(trees):
        positions[row, : len(tree.ids)] = torch.tensor(tree.positions)
        branch[row, : len(tree.ids)] = torch.tensor(tree.branch)
    own, seen = branch.unsqueeze(2), branch.unsqueeze(1)
    visible = torch.ones(width, width, dtype=torch.bool).tril() & ((own == seen) | (seen == 0))
    return Packed(ids.to(device), positions.to(device), visible.to(device), answers.to(device))


class _Tree(NamedTuple):
    ids: list[int]
    positions: list[int]
    branch: list[int]
    answers: list[int]


def _tree(sequences: Example) -> _Tree:
    shared = _shared_prefix(sequences)
    tree = _Tree(list(sequences[0][:shared]), list(range(shared)), [0] * shared, [])
    for number, sequence in enumerate(sequences, start=1):
        rest = sequence[shared:]
        tree.ids.extend(rest)
        tree.positions.extend(range(shared, len(sequence)))
        tree.branch.extend([number] * len(rest))
        tree.answers.append(len(tree.ids) - 1)
    return tree


def _shared_prefix(sequences: Example) -> int:
    # each sequence keeps at least its last token to itself: the answer is read there, once per sequence
    longest = min(len(sequence) for sequence in sequences) - 1
    for position in range(longest):
        if len({sequence[position] for sequence in sequences}) > 1:
            return position
    return longest
