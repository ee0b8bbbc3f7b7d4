"""Maps, norms and softmax against torch's own, forwards and backwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from gbcd.models.nonlinear import ACTIVATIONS, activated, passed, softmax
from gbcd.models.pieces import LinearMap, Norm


def random(*size: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_map_is_torchs_for_slices_and_transposes(dtype: torch.dtype, with_bias: bool) -> None:
    x, weight, bias = (
        random(3, 7, 24, dtype=dtype),
        random(24, 10, seed=1, dtype=dtype),
        random(10, seed=2, dtype=dtype),
    )
    if not with_bias:
        bias = None
    layouts = [
        (x, weight, bias),
        (x[:, :4], weight[:, 3:], None if bias is None else bias[3:]),
        (x[..., 12:], weight[12:], bias),
        (x[0], weight.T.contiguous().T, bias),
    ]
    tolerance = {torch.bfloat16: 3e-2, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    for rows, matrix, offset in layouts:
        linear = LinearMap(("m0.gate", "m0.up"), "out", matrix, offset)
        product = rows.double() @ matrix.double()
        wanted = product + (0 if offset is None else offset.double())
        torch.testing.assert_close(linear(rows).double(), wanted, rtol=tolerance, atol=10 * tolerance)
        less_bias = linear.sliced_output(linear(rows))
        assert less_bias is not None
        torch.testing.assert_close(less_bias.double(), product, rtol=tolerance, atol=10 * tolerance)
        assert LinearMap(("m0.in",), "out", matrix, offset).sliced_output(linear(rows)) is None
        d = torch.ones_like(wanted).to(dtype)
        torch.testing.assert_close(
            linear.back(d).double(), d.double() @ matrix.double().T, rtol=tolerance, atol=10 * tolerance
        )


@pytest.mark.parametrize("indices", [[0, 1], [2, 3], [0, 2], [1, 4]])
def test_slices_of_a_map_are_slices_of_its_output(indices: list[int]) -> None:
    names = ("a0.h0.q", "a0.h0.k", "a0.h0.v", "a0.h1.q", "a0.h1.k", "a0.h1.v")
    linear = LinearMap(names, "out", random(5, 12), random(12, seed=1))
    some = linear.slices(indices)
    assert some.components == tuple(names[index] for index in indices)
    x = random(2, 3, 5, seed=2)
    torch.testing.assert_close(some(x), linear(x).unflatten(2, (6, 2))[:, :, indices].flatten(2))
    assert linear.parts == {"q": slice(0, 4, 3), "k": slice(1, 5, 3), "v": slice(2, 6, 3)}


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_a_norm_goes_back_as_autograd_does_and_without_its_statistics_where_they_are_fixed(kind, offset) -> None:
    weight, bias = random(6, seed=1), random(6, seed=2) if kind == "layer" else None
    norm = Norm("a0.norm", kind, weight + offset, bias, 1e-5)
    for fixed in (False, True):
        x = random(2, 3, 6).requires_grad_()
        deviation = x - x.mean(-1, keepdim=True) if kind == "layer" else x
        scale = (deviation.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
        wanted = deviation * (scale.detach() if fixed else scale) * (weight + offset) + (0 if bias is None else bias)
        found, mean, rstd = norm(x.detach())
        torch.testing.assert_close(found, wanted.detach())
        d = random(2, 3, 6, seed=3)
        (expected,) = torch.autograd.grad(wanted, x, d)
        torch.testing.assert_close(norm.back(d, x.detach(), mean, rstd, fixed), expected)


def test_softmax_keeps_the_digits_of_a_row_that_is_nearly_certain() -> None:
    scores = torch.tensor([[0.0, 30.0]], requires_grad=True)
    (found,) = torch.autograd.grad(softmax(scores, 1.0), scores, torch.tensor([[1.0, 0.0]]))
    wide = scores.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(wide.softmax(-1), wide, torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    assert float(wanted[0, 1]) < 0
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=0)


def test_softmax_is_passed_back_as_if_scores_had_been_divided() -> None:
    scores, d = random(3, 5).requires_grad_(), random(3, 5, seed=1)
    soft = (scores.detach() / 2).requires_grad_()
    (wanted,) = torch.autograd.grad(soft.softmax(-1), soft, d)
    found = softmax(scores, 2.0)
    torch.testing.assert_close(found, scores.softmax(-1))
    torch.testing.assert_close(torch.autograd.grad(found, scores, d)[0], wanted)


def test_a_share_of_the_gradient_is_passed_and_the_value_kept() -> None:
    x = random(3, 5).requires_grad_()
    found = passed(x, 0.25)
    torch.testing.assert_close(found, x)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), x)[0], torch.full_like(x, 0.25))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_the_librarys_and_a_fixed_one_multiplies_by_a_constant(name: str) -> None:
    x = torch.cat([random(50) * 3, torch.tensor([0.0, 1e-200, -1e-300], dtype=torch.float64)]).requires_grad_()
    torch.testing.assert_close(activated(x, name, False), ACT2FN[name](x), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(activated(x, name, True), activated(x, name, False), rtol=1e-9, atol=1e-12)
    (found,) = torch.autograd.grad(activated(x, name, True).sum(), x)
    wanted = (ACTIVATIONS[name](x) / x).detach()[:50]
    torch.testing.assert_close(found[:50], wanted)
    assert torch.isfinite(found).all()


def test_a_module_with_weights_as_rows_and_one_with_columns_are_the_same_map() -> None:
    from transformers.pytorch_utils import Conv1D

    from gbcd.models.pieces import weight_of

    linear, conv = nn.Linear(3, 5), Conv1D(5, 3)
    conv.weight.data.copy_(linear.weight.data.T)
    assert torch.equal(weight_of(linear), weight_of(conv))
