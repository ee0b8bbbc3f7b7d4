"""Scores of the embedding, the table of positions, the unembedding, and the matrix that two of them may share.

The input of an embedding is one-hot, so the Gram matrix of inputs says which tokens of an example are equal. Where
token embedding and unembedding are one matrix, its gradient is the sum of both uses and its squared norm has the cross
term `2 sum_ta <d_t, h_a> d_logits_a[token_t]`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gbcd.engine.gram import gram, inner_products, widened
from gbcd.engine.references import Reference, gathered
from gbcd.models.captured import EmbeddingGradient

NAMES = ("embed.token", "embed.position", "unembed", "embed.tied")

Columns = dict[tuple[str, ...], Float[Tensor, "example 1"]]


def squares(gradient: EmbeddingGradient, reference: Reference | None) -> Columns:
    """Squared norms of each example's gradients, with inputs less those of `reference`; None is zero.

    A position is what it is in every prompt, so nothing of its gradient is left against a reference.
    """
    d, d_logits = widened(gradient.d_rows), widened(gradient.d_logits)
    own = gram(d)
    position = torch.zeros_like(own[:, 0, 0])
    if reference is None:
        one_hot, hidden = _same(gradient.ids), widened(gradient.hidden.x)
        position = (_same(gradient.positions) * own).sum((1, 2))
    else:
        one_hot, hidden = reference.one_hot_gram(gradient), widened(reference.difference(gradient.hidden))
    token = (one_hot * own).sum((1, 2))
    unembed = (gram(hidden) * gram(d_logits)).sum((1, 2))
    tied = token + unembed
    if gradient.tied:
        # only then are tokens what logits are of
        at_tokens = gathered(d_logits, gradient.ids) if reference is None else widened(reference.at_tokens(gradient))
        tied = tied + 2 * (torch.bmm(hidden, d.transpose(1, 2)) * at_tokens).sum((1, 2))
    return _columns(token, position, unembed, tied)


def attributions(gradient: EmbeddingGradient, reference: Reference | None) -> Columns:
    """`<W, G>` of each example."""
    d = widened(gradient.d_rows)
    rows = gradient.token_rows if reference is None else reference.token_rows(gradient)
    hidden = gradient.hidden.x if reference is None else reference.difference(gradient.hidden)
    token = inner_products(widened(rows), d, 1).squeeze(1)
    unembed = inner_products(widened(hidden), widened(gradient.d_hidden), 1).squeeze(1)
    position = torch.zeros_like(token)
    if reference is None and gradient.position_rows is not None:
        position = inner_products(widened(gradient.position_rows), d, 1).squeeze(1)
    return _columns(token, position, unembed, token + unembed)


def _columns(*values: Float[Tensor, " example"]) -> Columns:
    return {(name,): value.unsqueeze(1) for name, value in zip(NAMES, values, strict=True)}


def _same(index: Int[Tensor, "example pos"]) -> Float[Tensor, "example pos pos"]:
    return (index.unsqueeze(2) == index.unsqueeze(1)).float()
