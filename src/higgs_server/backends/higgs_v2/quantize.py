"""Weights in 8 or 4 bits: blocks along the input share a float32 scale.

On a CPU the layout is that of ONNX Runtime's MatMulNBits: uint8 [out, blocks, block * bits / 8], two 4-bit numbers a
byte, the first in the low half. A weight is (number - zero) * scale: zero is 128 for 8 bits, and for 4 each block has
its own, uint8 [out, blocks / 2], two a byte again. On a GPU a whole row is one block. Knows no model and no file.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Quantization = Literal["none", "int8", "int4"]
"""How weights are kept. none keeps their numbers: packed.py and the graph can do that too, in float32."""

SCALES, ZEROS = ".scales", ".zeros"
"""A quantised weight's scales, float32 [out, blocks], and where it has any its zeros have its name and one of these."""

_BLOCKS = {8: 64, 4: 32}
"""MatMulNBits keeps 8 bytes beside each block, so weights take 9 and 6 bits. Of the lengths for which a row's bits do
not depend on the batch (tested) these are the longest. What shorter or longer ones cost: bench/RESULTS.md."""
_ENDS = (1.05, 0.95)
"""Where the 16 numbers of a block are tried to end, at either side: beyond or within its extreme weights."""
_PIECE_WEIGHTS = 1 << 20
"""What is worked on at once: 4 MB in float32 stay in the cores' caches."""


class Layout(NamedTuple):
    """How a weight is packed."""

    bits: int
    block: int

    @classmethod
    def of(cls, shape: tuple[int, ...], inputs: int) -> Layout:
        """From the shape [out, blocks, bytes] of its numbers, and how many inputs it has."""
        _, blocks, size = shape
        return cls(size * 8 * blocks // inputs, inputs // blocks)


def block_of(inputs: int, bits: int) -> int:
    """The length of blocks in which rows of `inputs` weights are quantised: they divide into these."""
    return math.gcd(inputs, _BLOCKS[bits])


def quantize(weight: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """weight float [out, in] -> packed numbers, scales and, for 4 bits, zeros; in blocks of `block_of`."""
    outputs, inputs = weight.shape
    block = block_of(inputs, bits)
    blocks = inputs // block
    packed = torch.empty(outputs, blocks, block * bits // 8, dtype=torch.uint8)
    scales = torch.empty(outputs, blocks)
    zeros = torch.empty(outputs, (blocks + 1) // 2, dtype=torch.uint8) if bits == 4 else None
    step = max(1, _PIECE_WEIGHTS // inputs)
    for begin in range(0, outputs, step):
        part = slice(begin, begin + step)
        wide = weight[part].float().view(-1, blocks, block)
        if zeros is None:
            numbers, scales[part] = _around_zero(wide)
            packed[part] = (numbers + 128).to(torch.uint8)
        else:
            numbers, scales[part], own = _between_ends(wide)
            packed[part], zeros[part] = _in_halves(numbers), _in_halves(F.pad(own, (0, blocks % 2)))
    return packed, scales, zeros


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight float [out, in] -> int8 [out, in] and float32 [out], a scale for each row: their product is the weight."""
    numbers, scales = _around_zero(weight.float()[:, None])
    return numbers[:, 0].to(torch.int8), scales[:, 0]


def _in_halves(numbers: Tensor) -> Tensor:
    """Two numbers a byte, uint8 [..., n] -> [..., n / 2]."""
    return numbers[..., 0::2] | (numbers[..., 1::2] << 4)


def _around_zero(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """blocks float32 [n, blocks, block] -> whole numbers from -128 to 127, and scales [n, blocks].

    A block's extreme weight gets the number -128, which reaches further than 127, and the scale is the one that suits
    these numbers best (least squares).
    """
    low, high = blocks.aminmax(dim=-1, keepdim=True)
    extreme = torch.where(-low > high, low, high)
    numbers = (blocks * (-128 / torch.where(extreme == 0, 1.0, extreme))).round_().clamp_(-128, 127)
    along, square = _fit(blocks, numbers)
    return numbers, (along / square)[..., 0]


def _between_ends(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """blocks float32 [n, blocks, block] -> numbers of 4 bits, scales and zeros [n, blocks].

    Several ranges about a block's weights are tried, and of the numbers that they give those are taken that suit the
    block best, with the scale for which they do (least squares).
    """
    low, high = _ends(blocks)
    best_fit = torch.full_like(low, -1.0)
    best_step, best_zero = torch.ones_like(low), torch.zeros_like(low)

    def placed(step: Tensor, zero: Tensor) -> Tensor:
        return (blocks / step).round_().add_(zero).clamp_(0, 15).sub_(zero)

    for lower, upper in itertools.product(_ENDS, _ENDS):
        step = (high * upper - low * lower) / 15
        step = torch.where(step == 0, 1.0, step)
        zero = (-low * lower / step).round_()
        along, square = _fit(blocks, placed(step, zero))
        fit = along.square() / square  # what it takes from the squared error
        better = fit > best_fit
        best_fit = torch.where(better, fit, best_fit)
        best_step, best_zero = torch.where(better, step, best_step), torch.where(better, zero, best_zero)
    numbers = placed(best_step, best_zero)
    along, square = _fit(blocks, numbers)
    zeros = best_zero[..., 0].to(torch.uint8)
    return (numbers + best_zero).to(torch.uint8), (along / square)[..., 0], zeros


def _ends(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Each block's least and largest weight, or 0 where all are on one side of it: [n, blocks, 1]."""
    low, high = blocks.aminmax(dim=-1, keepdim=True)
    return low.clamp(max=0), high.clamp(min=0)


def _fit(blocks: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Each block's sum of products with its numbers, and that of the numbers' squares: [n, blocks, 1]."""
    return (blocks * numbers).sum(-1, keepdim=True), numbers.square().sum(-1, keepdim=True).clamp_(min=1)
