"""Weights in 8 or 4 bits: blocks of 32 along the input share a float32 scale.

The layout is that of ONNX Runtime's MatMulNBits: uint8 [out, blocks, 32 * bits / 8], two 4-bit numbers a byte, the
first in the low half; a weight is (number - half) * scale, half being 128 or 8. Knows no model and no file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from higgs_server.backends.higgs_v2.projection import native_bf16

Quantization = Literal["none", "int8", "int4"]
"""How weights are kept. none keeps their numbers: packed.py and the graph can do that too, in float32."""

BLOCK = 32
"""The smallest block MatMulNBits knows: least error, and a row's bits do not depend on the batch (tested)."""
SCALES = ".scales"
"""A quantised weight's scales, float32 [out, blocks], have its name and this."""

_ENDS = {8: (), 4: (7.0, 7.5, 8.0, 8.5, 9.0, 9.5, 10.0)}
"""Where a block's extreme weight is tried to be put; the range ends at half, so beyond it that weight is cut off."""
_CHUNK_WEIGHTS = 1 << 20


def bits_of(shape: Sequence[int]) -> int:
    """The bits a weight of this packed shape [out, blocks, bytes] has."""
    return shape[2] * 8 // BLOCK


def quantize(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """weight float [out, in], in a multiple of 32 -> packed numbers and scales.

    A block's extreme weight is put at the long end of the range or somewhat beyond, and of the numbers that this gives
    those are taken that fit the block best, with the scale for which they do (least squares).
    """
    outputs, blocks = len(weight), weight.shape[1] // BLOCK
    packed = torch.empty(outputs, blocks, BLOCK * bits // 8, dtype=torch.uint8)
    scales = torch.empty(outputs, blocks)
    step = max(1, _CHUNK_WEIGHTS // weight.shape[1])  # what stays in cache
    for begin in range(0, outputs, step):
        part = slice(begin, begin + step)
        numbers, scales[part] = _fit(weight[part].float().view(-1, blocks, BLOCK), bits)
        if bits == 4:
            numbers = numbers[..., 0::2] | (numbers[..., 1::2] << 4)
        packed[part] = numbers
    return packed, scales


def _fit(blocks: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """blocks float32 [n, blocks, 32] -> uint8 numbers of the same shape, and scales [n, blocks]."""
    half = 1 << (bits - 1)
    low, high = blocks.aminmax(dim=-1, keepdim=True)
    extreme = torch.where(-low > high, low, high)
    extreme = torch.where(extreme == 0, 1.0, extreme)
    best_end, best_fit = torch.full_like(extreme, half), torch.zeros_like(extreme)
    numbers, product = torch.empty_like(blocks), torch.empty_like(blocks)

    def place(end: Tensor | float) -> tuple[Tensor, Tensor]:
        """Fills `numbers`; returns their sums of products with the blocks, and of squares."""
        torch.mul(blocks, -end / extreme, out=numbers).round_().clamp_(-half, half - 1)
        along = torch.mul(blocks, numbers, out=product).sum(-1, keepdim=True)
        square = torch.mul(numbers, numbers, out=product).sum(-1, keepdim=True)
        return along, square.clamp_(min=1)

    for end in _ENDS[bits]:
        along, square = place(end)
        fit = along.square() / square  # what it takes from the squared error
        best_end[fit > best_fit] = end
        best_fit = torch.maximum(best_fit, fit)
    along, square = place(best_end)
    return numbers.add_(half).to(torch.uint8), (along / square)[..., 0]


def dequantize(packed: Tensor, scales: Tensor, out: Tensor) -> Tensor:
    """Packed numbers [n, blocks, bytes] and scales [n, blocks] into `out` float32 [n, blocks * 32]."""
    wide = out.view(*scales.shape, BLOCK)
    if bits_of(packed.shape) == 8:
        wide.copy_((packed ^ 128).view(torch.int8))
    else:
        pairs = wide.view(*packed.shape, 2)
        pairs[..., 0].copy_(packed & 15)
        pairs[..., 1].copy_(packed >> 4)
        wide.sub_(8)
    wide.mul_(scales[..., None])
    return out


class QuantizedProjection(nn.Module):
    """A linear map without bias, for prompts: weights are unpacked piece by piece, so many rows pay for it."""

    weight: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor, scales: Tensor, let_go: Callable[[], None]) -> None:
        """`let_go` is called whenever the weight has been read."""
        super().__init__()
        self.weight, self.scales, self._let_go = weight, scales, let_go

    def forward(self, x: Tensor) -> Tensor:
        """x float32 [rows, in] -> float32 [rows, out]."""
        outputs, inputs = len(self.scales), x.shape[1]
        y = torch.empty(len(x), outputs)
        x = x.bfloat16() if native_bf16() else x
        step = max(16, _CHUNK_WEIGHTS // inputs)

        @torch.inference_mode()
        def fill(begin: int) -> None:
            part = slice(begin, begin + step)
            scales = self.scales[part]
            wide = dequantize(self.weight[part], scales, torch.empty(len(scales), inputs))
            y[:, part] = F.linear(x, wide.to(x.dtype))

        list(_workers(torch.get_num_threads()).map(fill, range(0, outputs, step)))
        self._let_go()
        return y


@cache
def _workers(count: int) -> ThreadPoolExecutor:
    """Threads that take one piece after another. Each works alone in it: torch's own threads would meet after every
    operation, dozens of times a piece, and wait long for each other wherever something else is running."""

    def alone() -> None:
        torch.get_num_threads()  # a thread's first look sets its number, so it comes before ours
        torch.set_num_threads(1)
        everybody.wait()

    everybody = Barrier(count + 1)
    workers = ThreadPoolExecutor(count, "unpack", initializer=alone)
    for _ in range(count):
        workers.submit(int)
    everybody.wait()
    torch.set_num_threads(count)  # what threads that begin later take over
    return workers
