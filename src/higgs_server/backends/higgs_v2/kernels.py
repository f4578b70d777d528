"""What a decode step's layers are made of on an NVIDIA GPU, as few Triton kernels.

One row reads every weight and hardly computes, so what counts is that the memory never waits: norms, rotary embedding,
gates and residuals happen inside the kernels that need or make them. Sums are kept in float32, and values are rounded
to the model's dtype where network.py's are. Knows no layer and no model; nothing here looks at a value on the host.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_LEAST_ROWS = 16
"""Tensor cores multiply no fewer rows."""


@triton.jit
def _embed(codes, table, out, codebooks, size, hidden, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for codebook in range(codebooks):
        code = tl.load(codes + row * codebooks + codebook) + codebook * size
        total += tl.load(table + code * hidden + column, mask=column < hidden, other=0.0).to(tl.float32)
    tl.store(out + row * hidden + column, total.to(out.dtype.element_ty), mask=column < hidden)


def embed(codes: Tensor, table: Tensor, size: int) -> Tensor:
    """The sum of a row's embeddings: codes int64 [B, codebooks], table [codebooks * size, hidden] -> [B, hidden]."""
    out = table.new_empty(len(codes), table.shape[1])
    grid = (len(codes), triton.cdiv(table.shape[1], 512))
    _embed[grid](codes, table, out, codes.shape[1], size, table.shape[1], BLOCK=512)
    return out


@triton.jit
def _inverse_rms(wide, hidden, eps):
    return tl.rsqrt(tl.sum(wide * wide, axis=0) / hidden + eps)


@triton.jit
def _norm(x, gain, out, hidden, eps, WIDE: tl.constexpr):
    row = tl.program_id(0)
    column = tl.arange(0, WIDE)
    wide = tl.load(x + row * hidden + column, mask=column < hidden, other=0.0).to(tl.float32)
    scaled = (wide * _inverse_rms(wide, hidden, eps)).to(out.dtype.element_ty)
    result = scaled * tl.load(gain + column, mask=column < hidden, other=0.0)
    tl.store(out + row * hidden + column, result, mask=column < hidden)


def norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Root mean square norm of rows x [B, hidden]."""
    out = torch.empty_like(x)
    _norm[(len(x),)](x, gain, out, x.shape[1], eps, WIDE=triton.next_power_of_2(x.shape[1]), num_warps=8)
    return out


@triton.jit
def _silu(x, dtype: tl.constexpr):
    return (x / (1.0 + tl.exp(-x))).to(dtype).to(tl.float32)


@triton.jit
def _finish(sums, ups, GATED: tl.constexpr, dtype: tl.constexpr):
    result = sums.to(dtype)
    if GATED:
        result = (_silu(result.to(tl.float32), dtype) * ups.to(dtype).to(tl.float32)).to(dtype)
    return result


@triton.jit
def _gate(gate_up, out, size, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_up + 2 * row * size + column, mask=column < size, other=0.0).to(tl.float32)
    up = tl.load(gate_up + (2 * row + 1) * size + column, mask=column < size, other=0.0).to(tl.float32)
    dtype = out.dtype.element_ty
    tl.store(out + row * size + column, _finish(gate, up, True, dtype), mask=column < size)


def gate(gate_up: Tensor) -> Tensor:
    """silu(gate) * up: [B, 2 * size] -> [B, size]."""
    rows, size = len(gate_up), gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, size)
    _gate[(rows, triton.cdiv(size, 1024))](gate_up, out, size, BLOCK=1024)
    return out


@triton.jit
def _once(place, mask):
    """Weights that nobody else reads: in the caches they make room first, for what everybody does."""
    return tl.load(place, mask=mask, other=0, eviction_policy="evict_first")


@triton.jit
def _block_of(weight, inputs, outputs, BLOCK: tl.constexpr):
    """A program's outputs, which of them there are, and where their rows of the weight begin: the gate's, the up's."""
    output = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    gate = weight + output.to(tl.int64)[:, None] * inputs
    up = weight + (output + outputs).to(tl.int64)[:, None] * inputs
    return output, output < outputs, gate, up


@triton.jit
def _one_row(
    x, gain, weight, scales, residual, out, inputs, outputs, eps,
    NORM: tl.constexpr, QUANTIZED: tl.constexpr, GATED: tl.constexpr, ADDED: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    dtype = out.dtype.element_ty
    output, inside, place, place_up = _block_of(weight, inputs, outputs, BLOCK_OUT)
    sums = tl.zeros((BLOCK_OUT, BLOCK_IN), tl.float32)
    ups = tl.zeros((BLOCK_OUT, BLOCK_IN), tl.float32)
    if NORM:
        all_columns = tl.arange(0, WIDE)
        whole = tl.load(x + all_columns, mask=all_columns < inputs, other=0.0).to(tl.float32)
        inverse = _inverse_rms(whole, inputs, eps)
    for begin in range(0, inputs, BLOCK_IN):
        column = begin + tl.arange(0, BLOCK_IN)
        known = column < inputs
        mask = inside[:, None] & known[None, :]
        part = tl.load(x + column, mask=known, other=0.0)
        if NORM:
            part = (part.to(tl.float32) * inverse).to(dtype) * tl.load(gain + column, mask=known, other=0.0)
        part = part.to(tl.float32)[None, :]
        sums += part * _once(place + column[None, :], mask).to(tl.float32)
        if GATED:
            ups += part * _once(place_up + column[None, :], mask).to(tl.float32)
    result = tl.sum(sums, axis=1)
    up = tl.sum(ups, axis=1)
    if QUANTIZED:
        result *= tl.load(scales + output, mask=inside, other=0.0)
        if GATED:
            up *= tl.load(scales + outputs + output, mask=inside, other=0.0)
    result = _finish(result, up, GATED, dtype)
    if ADDED:
        result += tl.load(residual + output, mask=inside, other=0.0)
    tl.store(out + output, result, mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _rows(
    x, weight, scales, residual, out, rows, inputs, outputs,
    GATED: tl.constexpr, ADDED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    # Weights stand on the left: the tensor cores take that side from registers, where int8 becomes the dtype.
    dtype = out.dtype.element_ty
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    output, inside, place, place_up = _block_of(weight, inputs, outputs, BLOCK_OUT)
    sums = tl.zeros((BLOCK_OUT, BLOCK_ROWS), tl.float32)
    ups = tl.zeros((BLOCK_OUT, BLOCK_ROWS), tl.float32)
    for begin in range(0, inputs, BLOCK_IN):
        column = begin + tl.arange(0, BLOCK_IN)
        known = column < inputs
        mask = inside[:, None] & known[None, :]
        seen = known[:, None] & (row < rows)[None, :]
        part = tl.load(x + row[None, :] * inputs + column[:, None], mask=seen, other=0.0)
        numbers = tl.load(place + column[None, :], mask=mask, other=0).to(dtype)
        sums = tl.dot(numbers, part, sums, input_precision="ieee")
        if GATED:
            numbers = tl.load(place_up + column[None, :], mask=mask, other=0).to(dtype)
            ups = tl.dot(numbers, part, ups, input_precision="ieee")
    sums *= tl.load(scales + output, mask=inside, other=0.0)[:, None]
    if GATED:
        ups *= tl.load(scales + outputs + output, mask=inside, other=0.0)[:, None]
    result = _finish(sums, ups, GATED, dtype)
    own = row[None, :] * outputs + output[:, None]
    mask = inside[:, None] & (row < rows)[None, :]
    if ADDED:
        result += tl.load(residual + own, mask=mask, other=0.0)
    tl.store(out + own, result, mask=mask)


def product(
    x: Tensor,
    weight: Tensor,
    scales: Tensor | None,
    *,
    gain: Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """x Wᵀ with what stands around it: x [B, in], weight [out, in] -> [B, out], in x's dtype.

    scales: float32 [out], where the weight is int8. gain [in]: x goes through a norm first. gated: the weight's upper
    half is a gate's, its lower half what is let through, and the result [B, out / 2]. residual: is added to the result,
    which is no gated one then.
    """
    rows, inputs = x.shape
    outputs = len(weight) // (2 if gated else 1)
    flags = {"GATED": gated, "ADDED": residual is not None}
    if rows == 1:
        out = x.new_empty(1, outputs)
        _one_row[(triton.cdiv(outputs, 8),)](
            x, gain, weight, scales, residual, out, inputs, outputs, eps,
            NORM=gain is not None, QUANTIZED=scales is not None, **flags,
            WIDE=triton.next_power_of_2(inputs), BLOCK_OUT=8, BLOCK_IN=512 if gated else 1024, num_warps=4,
        )  # fmt: skip
        return out
    if gain is not None:
        x = norm(x, gain, eps)
    if scales is None:
        # cuBLAS is as fast as the memory from two rows on.
        if gated:
            return gate(torch.mm(x, weight.t()))
        return torch.mm(x, weight.t()) if residual is None else torch.addmm(residual, x, weight.t())
    out = x.new_empty(rows, outputs)
    block_rows = min(64, max(_LEAST_ROWS, triton.next_power_of_2(rows)))
    block_out = 16 if outputs < 4096 else 32
    _rows[(triton.cdiv(outputs, block_out), triton.cdiv(rows, block_rows))](
        x, weight, scales, residual, out, rows, inputs, outputs, **flags,
        BLOCK_ROWS=block_rows, BLOCK_OUT=block_out, BLOCK_IN=256 if block_rows == _LEAST_ROWS else 128,
        num_warps=4, num_stages=4,
    )  # fmt: skip
    return out
