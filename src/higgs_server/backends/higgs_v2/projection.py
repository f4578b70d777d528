"""y = x Wᵀ, the only kind of product with weights in this network.

On an accelerator it is torch's. On a CPU torch's does not serve us: a row's bits depend on how many rows there are,
bf16 without AVX-512 costs as much per row as the first one, and small batches of fp32 cost more than the same rows one
by one (measured on Zen and MKL 2024.2). So there the weight is walked in blocks that stay in cache, and each row takes
its own matrix-vector product with a block: read from memory once, bit-equal whoever shares the batch.
Knows no layer and no model.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from higgs_server.backends.higgs_v2.quantize import quantize_rows

ROWS_ONE_BY_ONE = 16
"""More rows than that are a prompt: whole matrix products are faster, and nothing promises their bits."""

_BLOCK_WEIGHTS = 768 * 1024
"""3 MB in fp32: fits beside its neighbours in a core's share of L3, and outweighs the calls (measured)."""


class Projection(nn.Module):
    """A linear map without bias; weight [out, in], where `scales` are there int8 and to be multiplied by them."""

    weight: nn.Parameter
    scales: Tensor | None
    """float32 [out]"""

    def __init__(self, inputs: int, outputs: int, device: torch.device, dtype: torch.dtype, *, int8: bool = False):
        super().__init__()
        kept = torch.empty(outputs, inputs, device=device, dtype=torch.int8 if int8 else dtype)
        self.weight = nn.Parameter(kept, requires_grad=False)
        self.register_buffer("scales", torch.empty(outputs, device=device) if int8 else None)

    def fill(self, row: int, weight: Tensor) -> None:
        """Quantises rows of a weight, float [n, in], into their place from `row` on."""
        assert self.scales is not None
        place = slice(row, row + len(weight))
        self.weight[place], self.scales[place] = quantize_rows(weight.to(self.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """x [rows, in] -> [rows, out], in x's dtype."""
        weight = self.weight
        if self.scales is not None:
            # Floats for the length of a product: a prompt's many rows are worth it.
            return (F.linear(x, weight.to(x.dtype)) * self.scales).to(x.dtype)
        if x.device.type != "cpu" or _torch_is_better(x):
            return F.linear(x, weight)
        return _in_blocks(x.float(), weight).to(x.dtype)


def _torch_is_better(x: Tensor) -> bool:
    if x.dtype == torch.float32:
        return x.shape[0] > ROWS_ONE_BY_ONE
    # One row of bf16 is torch's own matrix-vector product, and AVX-512 machines have real bf16 arithmetic.
    return x.shape[0] == 1 or native_bf16()


@cache
def native_bf16() -> bool:
    has_mkldnn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _in_blocks(x: Tensor, weight: Tensor) -> Tensor:
    """x float32 [rows, in], weight [out, in] in any dtype -> float32 [rows, out]."""
    rows, (outputs, inputs) = x.shape[0], weight.shape
    step = max(16, _BLOCK_WEIGHTS // inputs)
    y = torch.empty(rows, outputs)
    wide = None if weight.dtype == torch.float32 else torch.empty(min(step, outputs), inputs)
    for begin in range(0, outputs, step):
        block = weight[begin : begin + step]
        if wide is not None:
            block = wide[: len(block)].copy_(block)
        if rows > ROWS_ONE_BY_ONE:
            y[:, begin : begin + step] = x @ block.T
        else:
            for row in range(rows):
                torch.mv(block, x[row], out=y[row, begin : begin + step])
    return y
