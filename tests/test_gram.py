"""Norms by Gram matrices against gradients that are formed."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gbcd.engine import gram

sizes = st.integers(1, 9)


@given(sizes, sizes, st.integers(1, 4), st.integers(1, 5), sizes, st.sampled_from(["in", "out"]), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_all_routes_give_the_norms_of_the_formed_gradient(
    examples: int, length: int, n_slices: int, width: int, other: int, axis: gram.Axis, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    sliced = torch.randn(examples, length, n_slices * width, generator=generator, dtype=torch.float64)
    plain = torch.randn(examples, length, other, generator=generator, dtype=torch.float64)
    x, d = (sliced, plain) if axis == "in" else (plain, sliced)
    gradients = x.transpose(1, 2) @ d
    pieces = gradients.chunk(n_slices, 1 if axis == "in" else 2)
    expected = torch.stack([piece.square().sum((1, 2)) for piece in pieces], 1)
    torch.testing.assert_close(gram.slice_squares(gram.gram(plain), sliced, n_slices), expected)
    torch.testing.assert_close(gram.materialised_squares(x, d, n_slices, axis), expected)


def test_a_gram_pays_for_short_prompts_and_a_product_for_long_ones() -> None:
    assert not gram.materialising_pays(20, 768, 768)
    assert gram.materialising_pays(400, 768, 768)


def test_inner_products_by_slice() -> None:
    a, b = torch.tensor([[[1.0, 2, 3, 4]]]), torch.tensor([[[1.0, 1, 10, 10]]])
    assert gram.inner_products(a, b, 2).tolist() == [[3.0, 70.0]]
    assert gram.inner_products(a, b, 1).tolist() == [[73.0]]


def test_narrow_types_are_widened_and_wide_ones_kept() -> None:
    assert gram.widened(torch.ones(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert gram.widened(torch.ones(1, dtype=torch.float64)).dtype == torch.float64
