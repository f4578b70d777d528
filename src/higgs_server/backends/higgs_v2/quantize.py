"""Weights in 8 or 4 bits: blocks of 32 along the input share a float32 scale.

The layout is that of ONNX Runtime's MatMulNBits: uint8 [out, blocks, 32 * bits / 8], two 4-bit numbers a byte, the
first in the low half; a weight is (number - half) * scale, half being 128 or 8. Knows no model and no file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
_CHUNK_WEIGHTS = 1 << 18
"""A thread's share of what is worked on at once: 1 MB in float32 stays in its core's cache."""
_PIECE_WEIGHTS = 1 << 22
"""What is unpacked for one matrix product: enough for that to run at full speed (measured)."""


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
    step = max(1, _PIECE_WEIGHTS // 4 // weight.shape[1])
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


class Workspace:
    """Memory in which weights are unpacked for a product of many rows, one piece after another.

    A piece goes through a few of torch's elementwise operations, each over a chunk that stays in the cores' caches.
    """

    def __init__(self) -> None:
        self.dtype = torch.bfloat16 if native_bf16() else torch.float32
        self._wide = torch.empty(_PIECE_WEIGHTS, dtype=self.dtype)
        chunk = _CHUNK_WEIGHTS * torch.get_num_threads()
        self._numbers = torch.empty(chunk, dtype=torch.int8)
        self._shifted = torch.empty(chunk)

    def pieces(self, packed: Tensor, scales: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Slices of the outputs, each with its weights [outputs, in] until the next is asked for; see `columns`."""
        outputs, inputs = len(packed), packed.shape[1] * BLOCK
        many, few = max(1, _PIECE_WEIGHTS // inputs), max(1, len(self._shifted) // inputs)
        for begin in range(0, outputs, many):
            piece = slice(begin, min(begin + many, outputs))
            wide = self._wide[: (piece.stop - begin) * inputs].view(-1, inputs)
            for row in range(0, len(wide), few):
                out = wide[row : row + few]
                self._unpack(packed[begin + row :][: len(out)], scales[begin + row :][: len(out)], out)
            yield piece, wide

    def _unpack(self, packed: Tensor, scales: Tensor, out: Tensor) -> None:
        """Numbers [n, blocks, bytes] and scales [n, blocks] into `out` [n, in]."""
        bits, (outputs, blocks, size) = bits_of(packed.shape), packed.shape
        numbers = self._numbers[: packed.numel()].view(packed.shape)
        shifted = self._shifted[: out.numel()].view(outputs, 8 // bits, blocks, size)
        torch.bitwise_xor(packed, 128 if bits == 8 else 136, out=numbers.view(torch.uint8))  # half is 0 now
        if bits == 4:
            high = self._numbers[-packed.numel() :].view(packed.shape)
            shifted[:, 1] = torch.bitwise_right_shift(numbers, 4, out=high)
            torch.bitwise_left_shift(numbers, 4, out=numbers)
            torch.bitwise_right_shift(numbers, 4, out=numbers)
        shifted[:, 0] = numbers
        if out.dtype == shifted.dtype:
            torch.mul(shifted, scales[:, None, :, None], out=out.view(shifted.shape))
        else:  # in two operations, which torch does faster
            out.view(shifted.shape).copy_(shifted.mul_(scales[:, None, :, None]))


def columns(x: Tensor, bits: int) -> Tensor:
    """x [rows, in] with its columns in the order in which weights are unpacked: the low halves of bytes come first."""
    return x if bits == 8 else x.view(len(x), -1, 2).transpose(1, 2).reshape(len(x), -1)


class QuantizedProjection(nn.Module):
    """A linear map without bias, for prompts: weights are unpacked piece by piece, so many rows pay for it."""

    weight: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor, scales: Tensor, workspace: Workspace, let_go: Callable[[], None]) -> None:
        """`let_go` is called whenever the weight has been read."""
        super().__init__()
        self.weight, self.scales = weight, scales
        self._workspace, self._let_go = workspace, let_go

    def forward(self, x: Tensor) -> Tensor:
        """x float32 [rows, in] -> float32 [rows, out]."""
        y = torch.empty(len(x), len(self.weight))
        x = columns(x.to(self._workspace.dtype), bits_of(self.weight.shape))
        for piece, weight in self._workspace.pieces(self.weight, self.scales):
            y[:, piece] = F.linear(x, weight)
        self._let_go()
        return y
