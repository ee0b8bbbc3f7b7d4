"""Norms of the embedding, the table of positions, the unembedding, and the matrix that two of them may share.

The input of an embedding is one-hot, so the Gram matrix of inputs says which tokens of a unit are equal. Where token
embedding and unembedding are one matrix, its gradient is the sum of both uses and its squared norm has the cross term
`2 sum_ta <d_t, h_a> dlogits_a[token_t]`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gbcd.engine.gram import gram, inner_products, widened
from gbcd.engine.mean_inputs import MeanInputs
from gbcd.models.taps import EmbeddingTap

NAMES = ("embed.token", "embed.position", "unembed", "embed.tied")


class EmbeddingSquares(NamedTuple):
    """Squared norm, or Taylor score, by name of the component: one value per unit, or one for the batch.

    `tied` means something only where the two are one matrix.
    """

    token: Tensor
    position: Tensor
    unembed: Tensor
    tied: Tensor

    def named(self) -> dict[str, Tensor]:
        """By component."""
        return dict(zip(NAMES, self, strict=True))


def raw_squares(tap: EmbeddingTap) -> EmbeddingSquares:
    """Squared norms of each unit's gradients, shape `[unit]`."""
    d, hidden, d_logits = widened(tap.d), widened(tap.hidden.x), widened(tap.d_logits)
    own = gram(d)
    token = (_same(tap.ids) * own).sum((1, 2))
    position = (_same(tap.positions) * own).sum((1, 2))
    unembed = (gram(hidden) * gram(d_logits)).sum((1, 2))
    tied = token + unembed
    if tap.tied:
        tied = tied + 2 * (torch.bmm(hidden, d.transpose(1, 2)) * _at_tokens(tap, d_logits)).sum((1, 2))
    return EmbeddingSquares(token, position, unembed, tied)


def centered_squares(tap: EmbeddingTap, means: MeanInputs, groups: Int[Tensor, " unit"]) -> EmbeddingSquares:
    """The same with centred inputs; a position is what it is in every prompt, so nothing of its gradient is left."""
    d, d_logits = widened(tap.d), widened(tap.d_logits)
    hidden = widened(tap.hidden.x) - means.of(tap.hidden, groups)
    token = (means.one_hot_gram(tap.ids, tap.positions, groups) * gram(d)).sum((1, 2))
    unembed = (gram(hidden) * gram(d_logits)).sum((1, 2))
    tied = token + unembed
    if tap.tied:
        surprise = _at_tokens(tap, d_logits) - means.expected_logit_gradients(d_logits, tap.positions, groups)
        tied = tied + 2 * (torch.bmm(hidden, d.transpose(1, 2)) * surprise).sum((1, 2))
    return EmbeddingSquares(token, torch.zeros_like(token), unembed, tied)


def taylor_scores(tap: EmbeddingTap) -> EmbeddingSquares:
    """`<W, G>` of each unit, shape `[unit]`."""
    token = inner_products(widened(tap.token_rows), widened(tap.d), 1).squeeze(1)
    unembed = inner_products(widened(tap.hidden.x), widened(tap.d_hidden), 1).squeeze(1)
    position = torch.zeros_like(token)
    if tap.position_rows is not None:
        position = inner_products(widened(tap.position_rows), widened(tap.d), 1).squeeze(1)
    return EmbeddingSquares(token, position, unembed, token + unembed)


def summed_squares(tap: EmbeddingTap) -> EmbeddingSquares:
    """Squared norms of the gradients summed over all units of the batch, each a scalar."""
    d = widened(tap.d).flatten(0, 1)
    ids = tap.ids.flatten()
    hidden, d_logits = widened(tap.hidden.x).flatten(0, 1), widened(tap.d_logits).flatten(0, 1)
    token = _sum_by(ids, d).square().sum()
    position = _sum_by(tap.positions.flatten(), d).square().sum()
    unembed = ((hidden @ hidden.T) * (d_logits @ d_logits.T)).sum()
    tied = token + unembed
    if tap.tied:
        tied = tied + 2 * ((hidden @ d.T) * d_logits[:, ids]).sum()
    return EmbeddingSquares(token, position, unembed, tied)


def _at_tokens(tap: EmbeddingTap, d_logits: Float[Tensor, "unit seq vocab"]) -> Float[Tensor, "unit seq pos"]:
    return d_logits.gather(2, tap.ids.unsqueeze(1).expand(-1, d_logits.shape[1], -1))


def _same(index: Int[Tensor, "unit pos"]) -> Float[Tensor, "unit pos pos"]:
    return (index.unsqueeze(2) == index.unsqueeze(1)).float()


def _sum_by(index: Int[Tensor, " row"], d: Float[Tensor, "row d"]) -> Float[Tensor, "distinct d"]:
    distinct, inverse = index.unique(return_inverse=True)
    return d.new_zeros(len(distinct), d.shape[1]).index_add_(0, inverse, d)
