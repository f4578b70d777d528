from __future__ import annotations

import pytest
import torch

from higgs_server.backends.higgs_v2.projection import ROWS_ONE_BY_ONE, Projection

CPU = torch.device("cpu")


def projection(inputs: int, outputs: int, dtype: torch.dtype) -> Projection:
    layer = Projection(inputs, outputs, CPU, dtype)
    layer.weight.data.normal_(std=inputs**-0.5, generator=torch.Generator().manual_seed(0))
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 2, ROWS_ONE_BY_ONE, ROWS_ONE_BY_ONE + 1, 50])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 8208), (1000, 1700), (8192, 200)])
def test_it_is_the_matrix_product(inputs: int, outputs: int, rows: int, dtype: torch.dtype) -> None:
    layer = projection(inputs, outputs, dtype)
    x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(1)).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    exact = x.double() @ layer.weight.double().T
    torch.testing.assert_close(y.double(), exact, atol=1e-5 if dtype == torch.float32 else 0.02, rtol=0.01)


@pytest.mark.parametrize("inputs", [48, 3072])
def test_a_row_in_fp32_has_the_same_bits_in_every_small_batch(inputs: int) -> None:
    layer = projection(inputs, 1500, torch.float32)
    x = torch.randn(ROWS_ONE_BY_ONE, inputs, generator=torch.Generator().manual_seed(1))
    together = layer(x)
    for rows in (1, 3, 8):
        assert torch.equal(layer(x[:rows]), together[:rows])
    assert torch.equal(layer(x.flip(0)).flip(0), together)
