"""Attention of new positions over their own past, on an NVIDIA GPU: of one in every slot, or of a run in one slot.

Of one in every slot, rotary embedding, the write of the new key and value, and attention are one Triton kernel. A
slot's past is split among several programs where there are fewer slots than would keep the GPU busy (Flash-Decoding,
Dao et al. 2023), and a second kernel joins what they found. In a run each position needs the keys of others, so these
are written by a kernel that comes first. Where things stand is read on the device: nobody pays for the longest slot,
and a captured graph serves every place. Knows no layer and no model; nothing here looks at a value on the host.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_LEAST_GROUP = 16
"""Tensor cores multiply no fewer rows."""
_BLOCK = 64
"""Positions that are looked at together: a part of a past has at least so many."""
_MOST_SPLITS = 32
_RUN_ROWS = 32
_LOG2_E = 1.4426950408889634


@triton.jit
def _turn(first, second, cos, sin, dtype: tl.constexpr):
    """A pair's two sides rotated, rounded wherever network.py's are; float32 in, dtype out."""
    left = (first * cos).to(dtype).to(tl.float32) - (second * sin).to(dtype).to(tl.float32)
    right = (second * cos).to(dtype).to(tl.float32) + (first * sin).to(dtype).to(tl.float32)
    return left.to(dtype), right.to(dtype)


@triton.jit
def _along(query, key, sums):
    """sums + query keyᵀ; tensor cores take no fewer than 16 columns, and a tiny model's heads have fewer a side."""
    if query.shape[1] >= 16:
        sums = tl.dot(query, tl.trans(key), sums, input_precision="ieee")
    else:
        sums += tl.sum(query[:, None, :].to(tl.float32) * key[None, :, :].to(tl.float32), axis=2)
    return sums


@triton.jit
def _attended(scores, first, second, highest, total, sum_first, sum_second):
    """What was seen so far and a further block: its scores, and both halves of its values (online softmax)."""
    higher = tl.maximum(highest, tl.max(scores, axis=1))
    faded = tl.exp2(highest - higher)
    weights = tl.exp2(scores - higher[:, None])
    total = total * faded + tl.sum(weights, axis=1)
    weights = weights.to(first.dtype)
    sum_first = tl.dot(weights, first, sum_first * faded[:, None], input_precision="ieee")
    sum_second = tl.dot(weights, second, sum_second * faded[:, None], input_precision="ieee")
    return higher, total, sum_first, sum_second


@triton.jit(do_not_specialize=["splits"])
def _attend(
    qkv, cos, sin, keys, values, positions, out, maxima, sums, splits, scale, slot_stride, head_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    dtype = qkv.dtype.element_ty
    kv_head, slot, split = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    size: tl.constexpr = HEADS // KV_HEADS
    position = tl.load(positions + slot).to(tl.int32)
    side, member = tl.arange(0, HALF), tl.arange(0, GROUP)
    own_cos = tl.load(cos + position * HALF + side).to(tl.float32)
    own_sin = tl.load(sin + position * HALF + side).to(tl.float32)

    head = kv_head * size + member
    row = qkv + slot * (HEADS + 2 * KV_HEADS) * 2 * HALF
    place = row + head[:, None] * 2 * HALF + side[None, :]
    known = (member < size)[:, None]
    query_first, query_second = _turn(
        tl.load(place, mask=known, other=0.0).to(tl.float32),
        tl.load(place + HALF, mask=known, other=0.0).to(tl.float32),
        own_cos[None, :], own_sin[None, :], dtype,
    )  # fmt: skip
    new = row + (HEADS + kv_head) * 2 * HALF + side
    key_first, key_second = _turn(
        tl.load(new).to(tl.float32), tl.load(new + HALF).to(tl.float32), own_cos, own_sin, dtype
    )
    new += KV_HEADS * 2 * HALF
    value_first, value_second = tl.load(new), tl.load(new + HALF)

    length = position + 1
    share = tl.cdiv(tl.cdiv(length, splits), BLOCK) * BLOCK
    begin = split * share
    end = tl.minimum(begin + share, length)
    own = slot * slot_stride + kv_head * head_stride
    if (begin <= position) & (position < end):
        here = own + position * 2 * HALF + side
        tl.store(keys + here, key_first)
        tl.store(keys + here + HALF, key_second)
        tl.store(values + here, value_first)
        tl.store(values + here + HALF, value_second)

    highest = tl.full((GROUP,), float("-inf"), tl.float32)
    total = tl.zeros((GROUP,), tl.float32)
    sum_first = tl.zeros((GROUP, HALF), tl.float32)
    sum_second = tl.zeros((GROUP, HALF), tl.float32)
    for start in range(begin, end, BLOCK):
        past = start + tl.arange(0, BLOCK)
        there = (past < end)[:, None]
        # At the new position the cache may still show what was there before.
        is_new = (past == position)[:, None]
        spot = own + past[:, None] * 2 * HALF + side[None, :]
        first = tl.where(is_new, key_first[None, :], tl.load(keys + spot, mask=there, other=0.0))
        second = tl.where(is_new, key_second[None, :], tl.load(keys + spot + HALF, mask=there, other=0.0))
        scores = _along(query_first, first, tl.zeros((GROUP, BLOCK), tl.float32))
        scores = _along(query_second, second, scores) * scale
        scores = tl.where((past < end)[None, :], scores, float("-inf"))
        first = tl.where(is_new, value_first[None, :], tl.load(values + spot, mask=there, other=0.0))
        second = tl.where(is_new, value_second[None, :], tl.load(values + spot + HALF, mask=there, other=0.0))
        highest, total, sum_first, sum_second = _attended(scores, first, second, highest, total, sum_first, sum_second)

    place = (slot * HEADS + head) * splits + split
    spot = place[:, None] * 2 * HALF + side[None, :]
    if SPLIT:
        tl.store(maxima + place, highest, mask=member < size)
        tl.store(sums + place, total, mask=member < size)
    else:
        sum_first, sum_second = sum_first / total[:, None], sum_second / total[:, None]
    tl.store(out + spot, sum_first.to(out.dtype.element_ty), mask=known)
    tl.store(out + spot + HALF, sum_second.to(out.dtype.element_ty), mask=known)


@triton.jit(do_not_specialize=["splits"])
def _join(parts, maxima, sums, out, splits, MOST: tl.constexpr, SIZE: tl.constexpr):
    head = tl.program_id(0).to(tl.int64)
    split, column = tl.arange(0, MOST), tl.arange(0, SIZE)
    known = split < splits
    highest = tl.load(maxima + head * splits + split, mask=known, other=float("-inf"))
    faded = tl.exp2(highest - tl.max(highest, axis=0))
    total = tl.sum(faded * tl.load(sums + head * splits + split, mask=known, other=0.0), axis=0)
    place = (head * splits + split)[:, None] * SIZE + column[None, :]
    part = tl.load(parts + place, mask=known[:, None], other=0.0)
    result = tl.sum(part * faded[:, None], axis=0) / total
    tl.store(out + head * SIZE + column, result.to(out.dtype.element_ty))


def splits_of(programs: int, max_len: int, processors: int) -> int:
    """Into how many parts a past of up to max_len positions is split, of as many slots and heads as `programs`."""
    return max(1, min(2 * processors // programs, -(-max_len // _BLOCK), _MOST_SPLITS))


def attend(
    qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, positions: Tensor, kv_heads: int, splits: int
) -> Tensor:
    """qkv [B, heads + 2 * kv_heads, head_dim], not rotated yet, of slots 0 … B-1 -> [B, heads * head_dim].

    cos and sin [max_len, head_dim / 2] in the model's dtype; keys and values [slots, kv_heads, max_len, head_dim],
    where the new ones are written at positions, int64 [B].
    """
    batch, rows, size = qkv.shape
    heads = rows - 2 * kv_heads
    out = qkv.new_empty(batch, heads * size)
    parts, maxima, sums = out, None, None
    if splits > 1:
        parts = torch.empty(batch * heads, splits, size, device=qkv.device)
        maxima, sums = (torch.empty(batch * heads, splits, device=qkv.device) for _ in range(2))
    _attend[(kv_heads, batch, splits)](
        qkv, cos, sin, keys, values, positions, parts, maxima, sums, splits,
        size**-0.5 * _LOG2_E, keys.stride(0), keys.stride(1),
        HEADS=heads, KV_HEADS=kv_heads, HALF=size // 2, BLOCK=_BLOCK, SPLIT=splits > 1,
        GROUP=max(_LEAST_GROUP, triton.next_power_of_2(heads // kv_heads)), num_warps=4, num_stages=2,
    )  # fmt: skip
    if splits > 1:
        _join[(batch * heads,)](parts, maxima, sums, out, splits, MOST=_MOST_SPLITS, SIZE=size, num_warps=4)
    return out


@triton.jit
def _write_run(
    qkv, cos, sin, keys, values, place, slot_stride, head_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    dtype = qkv.dtype.element_ty
    number, head, side = tl.program_id(0), tl.arange(0, WIDE), tl.arange(0, HALF)
    slot, position = tl.load(place), tl.load(place + 1) + number
    if number < tl.load(place + 2):
        own_cos = tl.load(cos + position * HALF + side).to(tl.float32)[None, :]
        own_sin = tl.load(sin + position * HALF + side).to(tl.float32)[None, :]
        spot = qkv + (number * (HEADS + 2 * KV_HEADS) + head)[:, None] * 2 * HALF + side[None, :]
        known = (head < HEADS + 2 * KV_HEADS)[:, None]
        old_first, old_second = tl.load(spot, mask=known, other=0.0), tl.load(spot + HALF, mask=known, other=0.0)
        first, second = _turn(old_first.to(tl.float32), old_second.to(tl.float32), own_cos, own_sin, dtype)
        query = (head < HEADS)[:, None]
        tl.store(spot, first, mask=query)
        tl.store(spot + HALF, second, mask=query)
        here = slot * slot_stride + position * 2 * HALF + side[None, :]
        spot = keys + here + (head - HEADS)[:, None] * head_stride
        key = ((head >= HEADS) & (head < HEADS + KV_HEADS))[:, None]
        tl.store(spot, first, mask=key)
        tl.store(spot + HALF, second, mask=key)
        spot = values + here + (head - HEADS - KV_HEADS)[:, None] * head_stride
        value = (head >= HEADS + KV_HEADS)[:, None] & known
        tl.store(spot, old_first, mask=value)
        tl.store(spot + HALF, old_second, mask=value)


@triton.jit
def _attend_run(
    qkv, keys, values, place, out, rows, scale, slot_stride, head_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    dtype = qkv.dtype.element_ty
    head, number, side = tl.program_id(0), tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, HALF)
    slot, start, count = tl.load(place), tl.load(place + 1).to(tl.int32), tl.load(place + 2).to(tl.int32)
    known = (number < rows)[:, None]
    row = qkv + (number * (HEADS + 2 * KV_HEADS) + head)[:, None] * 2 * HALF + side[None, :]
    query_first, query_second = tl.load(row, mask=known, other=0.0), tl.load(row + HALF, mask=known, other=0.0)
    own = slot * slot_stride + (head // (HEADS // KV_HEADS)) * head_stride
    highest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    sum_first = tl.zeros((ROWS, HALF), tl.float32)
    sum_second = tl.zeros((ROWS, HALF), tl.float32)
    # Rows that only fill the run up see what the last one sees, and mean nothing.
    end = start + tl.minimum(count, (tl.program_id(1) + 1) * ROWS)
    for begin in range(0, end, BLOCK):
        past = begin + tl.arange(0, BLOCK)
        there = (past < end)[:, None]
        spot = own + past[:, None] * 2 * HALF + side[None, :]
        scores = _along(query_first, tl.load(keys + spot, mask=there, other=0.0), tl.zeros((ROWS, BLOCK), tl.float32))
        scores = _along(query_second, tl.load(keys + spot + HALF, mask=there, other=0.0), scores) * scale
        seen = (past[None, :] <= (start + number)[:, None]) & (past < end)[None, :]
        scores = tl.where(seen, scores, float("-inf"))
        first = tl.load(values + spot, mask=there, other=0.0)
        second = tl.load(values + spot + HALF, mask=there, other=0.0)
        highest, total, sum_first, sum_second = _attended(scores, first, second, highest, total, sum_first, sum_second)
    row = out + (number * HEADS + head)[:, None] * 2 * HALF + side[None, :]
    tl.store(row, (sum_first / total[:, None]).to(dtype), mask=known)
    tl.store(row + HALF, (sum_second / total[:, None]).to(dtype), mask=known)


def attend_run(
    qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, place: Tensor, kv_heads: int
) -> Tensor:
    """qkv [n, heads + 2 * kv_heads, head_dim], not rotated yet (it is, afterwards), of a run -> [n, heads * head_dim].

    place: int64 [3], the slot, the position of the first row, and how many rows there are; those behind them fill the
    run up, are not written, and mean nothing. The rest is as for `attend`.
    """
    count, rows, size = qkv.shape
    heads = rows - 2 * kv_heads
    out = qkv.new_empty(count, heads * size)
    shape = {"HEADS": heads, "KV_HEADS": kv_heads, "HALF": size // 2}
    strides = keys.stride(0), keys.stride(1)
    wide = triton.next_power_of_2(rows)
    _write_run[(count,)](qkv, cos, sin, keys, values, place, *strides, **shape, WIDE=wide, num_warps=4)
    _attend_run[(heads, triton.cdiv(count, _RUN_ROWS))](
        qkv, keys, values, place, out, count, size**-0.5 * _LOG2_E, *strides,
        **shape, ROWS=_RUN_ROWS, BLOCK=_BLOCK, num_warps=4, num_stages=2,
    )  # fmt: skip
    return out
