"""The products of the engine's own pass against torch's, in every type and layout that the pass hands over."""

from __future__ import annotations

import pytest
import torch

from gbcd.models.products import by_used_rows, linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_torch_for_slices_transposes_and_many_rows(dtype: torch.dtype, with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 7, 24, generator=generator).to(dtype)
    weight = torch.randn(24, 10, generator=generator).to(dtype)
    bias = torch.randn(10, generator=generator).to(dtype) if with_bias else None
    layouts = [
        (x, weight, bias),
        (x[:, :4], weight[:, 3:], None if bias is None else bias[3:]),
        (x[..., 12:], weight[12:], bias),
        (x[0], weight.T.contiguous().T, bias),
    ]
    for rows, matrix, offset in layouts:
        expected = rows.double() @ matrix.double() + (0 if offset is None else offset.double())
        tolerance = 3e-2 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(linear(rows, matrix, offset).double(), expected, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("n_used", [0, 2, 9, 40])
def test_rows_that_a_loss_does_not_read_are_not_missed(n_used: int) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(40, 6, generator=generator)
    gradient = torch.zeros(3, 2, 40)
    gradient[..., torch.randperm(40, generator=generator)[:n_used]] = torch.randn(3, 2, n_used, generator=generator)
    torch.testing.assert_close(by_used_rows(gradient, table), gradient @ table)
