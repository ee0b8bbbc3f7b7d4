"""The mathematics of norms: from inputs X and output gradients D of linear maps to norms of weight gradients.

For `Y = X W + b` the weight gradient of one prompt is `G = X^T D`, a matrix that is never formed here:

    ||G||_F^2 = sum_ts (X X^T)_ts (D D^T)_ts

(Goodfellow 2015, arXiv 1510.01799, section 3; the "ghost norm" of Li et al. 2021, arXiv 2110.05679, section 4.)
Slices come at no extra arithmetic. For columns of W (queries, keys and values of a head) the slice of D alone changes:
`||G_h||^2 = tr(D_h^T (X X^T) D_h)`, so with `K = X X^T` it is the slice's share of `sum (K D) * D`. For rows of W (the
attention output) `K = D D^T` serves all slices of X in the same way. Where a prompt is so long that the T x T matrices
cost more than `G` itself, `G` is formed after all.

Everything here accumulates in float32 or wider; squared norms may come out a rounding error below zero and are clamped
only where the root is taken.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gbcd.component import Axis


def widened(x: Tensor) -> Tensor:
    """`x` in float32 if it is narrower, else as it is."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def gram(x: Float[Tensor, "example pos d"]) -> Float[Tensor, "example pos pos"]:
    """Inner products of all positions of an example: `X X^T`."""
    return torch.bmm(x, x.transpose(1, 2))


def slice_squares(
    k: Float[Tensor, "example pos pos"], y: Float[Tensor, "example pos width"], n_slices: int
) -> Float[Tensor, "example slice"]:
    """`tr(Y_s^T K Y_s)` for each of `n_slices` equal-width slices Y_s of `y`; K is the Gram of the other side."""
    if n_slices == 1:
        return (k * gram(y)).sum((1, 2)).unsqueeze(1)
    return inner_products(torch.bmm(k, y), y, n_slices)


def inner_products(
    a: Float[Tensor, "example pos width"], b: Float[Tensor, "example pos width"], n_slices: int
) -> Float[Tensor, "example slice"]:
    """`sum_t <a_t, b_t>` over each of `n_slices` equal-width slices of the last axis."""
    slices = (n_slices, a.shape[2] // n_slices)
    return torch.linalg.vecdot(a.unflatten(2, slices), b.unflatten(2, slices)).sum(1)


def materialising_pays(length: int, d_in: int, d_out: int) -> bool:
    """True where forming G costs less than the two Gram matrices: `T > d_in d_out / (d_in + d_out)`."""
    return length * (d_in + d_out) > d_in * d_out


def materialised_squares(
    x: Float[Tensor, "example pos d_in"], d: Float[Tensor, "example pos d_out"], n_slices: int, axis: Axis
) -> Float[Tensor, "example slice"]:
    """Squared norms of slices of G by forming G, one example at a time so that memory stays that of one matrix."""
    return torch.stack([_squares_of_slices(x_i.T @ d_i, n_slices, axis) for x_i, d_i in zip(x, d, strict=True)])


def _squares_of_slices(g: Float[Tensor, "d_in d_out"], n_slices: int, axis: Axis) -> Float[Tensor, " slice"]:
    if n_slices == 1:
        flat = g.reshape(-1)
        return torch.dot(flat, flat).unsqueeze(0)
    if axis == "in":
        rows = g.reshape(n_slices, -1)
        return torch.linalg.vecdot(rows, rows)
    columns = g.reshape(len(g), n_slices, -1)
    return torch.linalg.vecdot(columns, columns).sum(0)
