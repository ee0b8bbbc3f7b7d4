"""Lay units out as padded tensors: a unit is one sequence, or several whose gradients are added.

The deck's loss is a sum over a prompt and its twin, which differ in one token. Everything before that token is the same
for both, so it is computed once: a unit is stored as a tree, `prefix + rest of the first + rest of the second`, in
which each token sees its own branch and the prefix only. The loss is a sum over the branches, so gradients at the
shared prefix add up by themselves and `G = X^T D` over the tree's tokens is exactly the sum over both sequences.

Padding stands on the right and nothing real can see it, so its output gradients are exactly zero and the Gram
matrices need no mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Sequences = Sequence[tuple[int, ...]]
"""The sequences of one unit; each one's answer is read at its last token."""


@dataclass(frozen=True)
class PackedUnits:
    """Units as tensors.

    Attributes:
        ids: token ids; padding is token 0.
        positions: position of each token in its own sequence, whatever at padding; units of one sequence have the same,
            and share one row of memory (stride 0).
        visible: `visible[u, t, s]` is True where token t of unit u attends to token s.
        answers: index of each sequence's last token.
        first_length: longest first sequence; the first sequences of all units lie within the first so many tokens.
    """

    ids: Int[Tensor, "unit pos"]
    positions: Int[Tensor, "unit pos"]
    visible: Bool[Tensor, "unit pos pos"]
    answers: Int[Tensor, "unit seq"]
    first_length: int


def pack(units: Sequence[Sequences], device: torch.device) -> PackedUnits:
    """Pack units of equally many sequences, sharing the prefix within each.

    Raises:
        ValueError: no unit, or units of different numbers of sequences (a fault of the caller).
    """
    if len({len(unit) for unit in units}) != 1:
        raise ValueError("a batch needs at least one unit, and all its units the same number of sequences")
    trees = [_tree(unit) for unit in units]
    width = max(len(tree.ids) for tree in trees)
    ids = torch.zeros(len(trees), width, dtype=torch.int64)
    positions = torch.zeros_like(ids)
    branch = torch.full_like(ids, -1)
    for row, tree in enumerate(trees):
        n = len(tree.ids)
        ids[row, :n] = torch.tensor(tree.ids)
        positions[row, :n] = torch.tensor(tree.positions)
        branch[row, :n] = torch.tensor(tree.branch)
    visible = torch.ones(width, width, dtype=torch.bool).tril().unsqueeze(0)
    own, seen = branch.unsqueeze(2), branch.unsqueeze(1)
    visible = visible & ((own == seen) | (seen == 0))
    positions = positions.to(device)
    if len(units[0]) == 1:
        positions = torch.arange(width, device=device).expand(len(units), -1)
    return PackedUnits(
        ids.to(device),
        positions,
        visible.to(device),
        torch.tensor([tree.answers for tree in trees], device=device),
        max(len(unit[0]) for unit in units),
    )


@dataclass(frozen=True)
class _Tree:
    ids: list[int]
    positions: list[int]
    branch: list[int]
    answers: list[int]


def _tree(sequences: Sequences) -> _Tree:
    shared = _shared_prefix(sequences)
    tree = _Tree(list(sequences[0][:shared]), list(range(shared)), [0] * shared, [])
    for number, sequence in enumerate(sequences, start=1):
        rest = sequence[shared:]
        tree.ids.extend(rest)
        tree.positions.extend(range(shared, len(sequence)))
        tree.branch.extend([number] * len(rest))
        tree.answers.append(len(tree.ids) - 1)
    return tree


def _shared_prefix(sequences: Sequences) -> int:
    # Each sequence keeps at least its last token to itself: the answer is read there, once per sequence.
    longest = min(len(sequence) for sequence in sequences) - 1
    for position in range(longest):
        if len({sequence[position] for sequence in sequences}) > 1:
            return position
    return longest
