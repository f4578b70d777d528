"""`sampler.draw` as two Triton kernels in the place of its hundred small ones: what it says there holds here.

One kernel draws, a program for each codebook of each slot; the other, a program for each slot, then moves the state on.
Nothing is put in order: how likely the last code kept by top-k and by top-p is, is found by bisection over integers
that are ordered like the logits, which is exact, and always over after 32 steps.

A code is the torch version's unless the noise falls between two codes to the last bits of a float32 sum: sums are
added up in another order here, and exp is the hardware's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from higgs_server.engine import sampler
from higgs_server.engine.sampler import _GOLDEN, _MIX, LONGEST_RAS_WINDOW, SamplerState
from higgs_server.engine.sequence import CodeFormat
from higgs_server.types import SamplingParams

_TRIED = 24
"""Slots in which it is tried."""
_STEP = tl.constexpr(_GOLDEN)
_SHIFT_1, _SHIFT_2 = (tl.constexpr(shift) for shift, _ in _MIX)
_FACTOR_1, _FACTOR_2 = (tl.constexpr(factor) for _, factor in _MIX)


@triton.jit
def _uniform(key, row, codebook, draw, CODEBOOKS: tl.constexpr):
    """`sampler.uniform` for one codebook and one of the two draws. Scalars: int64 key and row -> float32."""
    index = (row * CODEBOOKS + codebook) * 2 + draw
    value = key.to(tl.uint64) + index.to(tl.uint64) * _STEP
    value = (value ^ (value >> _SHIFT_1)) * _FACTOR_1
    value = (value ^ (value >> _SHIFT_2)) * _FACTOR_2
    value = value ^ (value >> 31)
    return ((value >> 41).to(tl.int32).to(tl.float32) + 0.5) * 2.0**-23


@triton.jit
def _flip(bits):
    """The bits of a float32 as an int32 that is ordered like the float, and back again."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _rank(logits, code):
    """Of logits [BLOCK]: int32 keys in the same order [BLOCK], the largest key, its first code, exp(logits - largest).

    As in torch, a NaN is the largest of all, and leaves no exp that is a number.
    """
    logits = tl.where(logits == 0, 0.0, logits)  # -0 and 0 are a tie
    keys = tl.where(logits == logits, _flip(logits.to(tl.int32, bitcast=True)), 0x7FFFFFFF)
    top = tl.max(keys, 0)
    likeliest = tl.min(tl.where(keys == top, code, 0x7FFFFFFF), 0)
    return keys, top, likeliest, tl.exp(logits - _flip(top).to(tl.float32, bitcast=True))


@triton.jit
def _threshold(keys, weights, wanted, low, high):
    """The largest key from `low` to `high` such that the weights of it and all above sum to `wanted`; else `low`.

    The sum never falls as the key does, rounded or not: it is always added up in the same order.
    """
    while low < high:
        middle = (low | high) - ((low ^ high) >> 1)  # half way, rounded up: low + high could overflow
        if tl.sum(tl.where(keys >= middle, weights, 0.0), 0) >= wanted:
            low = middle
        else:
            high = middle - 1
    return low


@triton.jit
def _keep_likely(keys, top, weights, top_k, top_p, VOCABULARY: tl.constexpr):
    """`sampler._keep_likely`, of the keys, the largest key and the weights of `_rank`: weights [BLOCK], else 0."""
    least = tl.min(keys, 0)  # nothing lies below it, so the search never counts it, nor what pads the block
    if top_k < VOCABULARY:
        least = _threshold(keys, 1.0, top_k.to(tl.float32), least, top)
    if top_p < 1:
        kept = tl.where(keys >= least, weights, 0.0)
        least = _threshold(keys, kept, top_p * tl.sum(kept, 0), least, top)
    return tl.where(keys >= least, weights, 0.0)


@triton.jit
def _pick(weights, noise, code, likeliest, VOCABULARY: tl.constexpr):
    """`sampler._pick`, of weights [BLOCK] that need not sum to 1; `likeliest` where there is no such code."""
    cumulated = tl.cumsum(weights, 0)
    total = tl.sum(tl.where(code == VOCABULARY - 1, cumulated, 0.0), 0)
    reached = (cumulated > noise * total) & (weights > 0)
    first = tl.min(tl.where(reached, code, VOCABULARY), 0)
    return tl.where(first < VOCABULARY, first, likeliest)


# The state of one slot begins anywhere: left alone, Triton would compile, within a request, for each alignment.
@triton.jit(do_not_specialize_on_alignment=range(12))
def _draw_codes(
    logits_ptr,
    row_ptr,
    ramp_ptr,
    key_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    ras_window_ptr,
    ras_repeats_ptr,
    history_ptr,
    drawn_ptr,
    broken_ptr,
    CODEBOOKS: tl.constexpr,
    BOS: tl.constexpr,
    EOS: tl.constexpr,
    WINDOW: tl.constexpr,
    VOCABULARY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (slot, codebook) writes one code to drawn [B, codebooks + 1], and to broken int64 [B, codebooks]."""
    slot, codebook = tl.program_id(0), tl.program_id(1)
    place = slot * CODEBOOKS + codebook
    code = tl.arange(0, BLOCK)
    logits = tl.load(logits_ptr + place * VOCABULARY + code, mask=code < VOCABULARY, other=float("-inf"))
    row, key = tl.load(row_ptr + slot), tl.load(key_ptr + slot)

    temperature = tl.load(temperature_ptr + slot)
    scaled = tl.div_rn(logits, tl.where(temperature > 0, temperature, 1.0))
    keys, top, drawn, weights = _rank(scaled, code)
    if temperature > 0:
        top_k, top_p = tl.load(top_k_ptr + slot), tl.load(top_p_ptr + slot)
        kept = _keep_likely(keys, top, weights, top_k, top_p, VOCABULARY)
        drawn = _pick(kept, _uniform(key, row, codebook, 0, CODEBOOKS), code, drawn, VOCABULARY)

    window = tl.load(ras_window_ptr + slot)
    if window > 0:
        age = tl.arange(0, WINDOW)
        past = slot * WINDOW + (row + WINDOW - 1 - age) % WINDOW
        seen = tl.load(history_ptr + past * CODEBOOKS + codebook, mask=age < window, other=-1)
        if tl.sum((seen == drawn).to(tl.int32), 0) >= tl.load(ras_repeats_ptr + slot):
            _, _, likeliest, weights = _rank(logits, code)
            drawn = _pick(weights, _uniform(key, row, codebook, 1, CODEBOOKS), code, likeliest, VOCABULARY)

    drawn = tl.where(codebook >= row, BOS, drawn)
    drawn = tl.where(codebook < tl.load(ramp_ptr + slot), EOS, drawn)
    tl.store(drawn_ptr + place + slot, drawn)
    finite = (tl.abs(logits) < float("inf")) | (code >= VOCABULARY)
    tl.store(broken_ptr + place, 1 - tl.min(finite.to(tl.int32), 0))


@triton.jit(do_not_specialize_on_alignment=range(9))
def _move_on(
    drawn_ptr,
    broken_ptr,
    active_ptr,
    position_ptr,
    codes_ptr,
    row_ptr,
    row_limit_ptr,
    ramp_ptr,
    history_ptr,
    CODEBOOKS: tl.constexpr,
    BOS: tl.constexpr,
    EOS: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program `slot` moves its state on by the codes in drawn [B, codebooks + 1], and writes its last column.

    Runs in one warp: several could read what the first of them has written.
    """
    slot = tl.program_id(0)
    codebook = tl.arange(0, BLOCK)
    is_codebook = codebook < CODEBOOKS
    drawn = tl.load(drawn_ptr + slot * (CODEBOOKS + 1) + codebook, mask=is_codebook, other=EOS)
    broken = tl.load(broken_ptr + slot * CODEBOOKS + codebook, mask=is_codebook, other=0)
    row, row_limit = tl.load(row_ptr + slot), tl.load(row_limit_ptr + slot)
    position, ramp = tl.load(position_ptr + slot), tl.load(ramp_ptr + slot)
    active = tl.load(active_ptr + slot).to(tl.int32)

    ends = tl.sum(((drawn == EOS) & is_codebook).to(tl.int32), 0)
    remembered = tl.where((drawn == EOS) | (drawn == BOS), -1, drawn)
    past = (slot * WINDOW + row % WINDOW) * CODEBOOKS + codebook
    tl.store(history_ptr + past, remembered.to(tl.int16), mask=is_codebook)
    tl.store(codes_ptr + slot * CODEBOOKS + codebook, drawn, mask=codebook < CODEBOOKS * active)
    tl.store(ramp_ptr + slot, ramp + tl.where(ends > 0, active, 0))
    tl.store(row_ptr + slot, row + active)
    tl.store(position_ptr + slot, position + active)
    tl.store(active_ptr + slot, (active > 0) & (ends < CODEBOOKS) & (row + active < row_limit))
    tl.store(drawn_ptr + slot * (CODEBOOKS + 1) + CODEBOOKS, tl.max(broken, 0))


def draw(state: SamplerState, logits: torch.Tensor, code_format: CodeFormat, reach: int) -> torch.Tensor:
    """`sampler.draw`, in place of which it can stand. `reach` is not needed: no codes are put in order."""
    batch, codebooks, vocabulary = logits.shape
    logits = logits.contiguous()
    drawn = torch.empty((batch, codebooks + 1), dtype=torch.int64, device=logits.device)
    broken = torch.empty((batch, codebooks), dtype=torch.int64, device=logits.device)
    shared = {"CODEBOOKS": codebooks, "BOS": code_format.bos, "EOS": code_format.eos, "WINDOW": LONGEST_RAS_WINDOW}
    _draw_codes[(batch, codebooks)](
        logits,
        state.row,
        state.ramp,
        state.key,
        state.temperature,
        state.top_k,
        state.top_p,
        state.ras_window,
        state.ras_repeats,
        state.history,
        drawn,
        broken,
        **shared,
        VOCABULARY=vocabulary,
        BLOCK=triton.next_power_of_2(vocabulary),
        enable_fp_fusion=False,
    )
    _move_on[(batch,)](
        drawn,
        broken,
        state.active,
        state.position,
        state.codes,
        state.row,
        state.row_limit,
        state.ramp,
        state.history,
        **shared,
        BLOCK=triton.next_power_of_2(codebooks),
        num_warps=1,
        enable_fp_fusion=False,
    )
    return drawn


def tried(code_format: CodeFormat, vocabulary: int, device: torch.device) -> Callable[..., torch.Tensor] | None:
    """`draw`, for a GPU; None where it does not draw what the sampler does but for one code in a hundred."""
    kinds = (
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=1.0, top_k=20),
        SamplingParams(temperature=0.7, top_p=0.9, ras_win_len=7, ras_win_max_num_repeat=1),
    )
    states = [SamplerState.new(_TRIED, code_format, device) for _ in range(2)]
    for state in states:
        for slot in range(_TRIED):
            state.start(slot, kinds[slot % len(kinds)].model_copy(update={"seed": slot}), 1000, slot, vocabulary)
        state.row.add_(torch.arange(_TRIED, device=device) // 2)
    shape = _TRIED, code_format.codebooks, vocabulary
    logits = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    ours, theirs = (
        draw(states[0], logits, code_format, vocabulary),
        sampler.draw(states[1], logits, code_format, vocabulary),
    )
    moved = all(
        torch.equal(getattr(states[0], name), getattr(states[1], name)) for name in ("row", "position", "active")
    )
    return draw if moved and (ours != theirs).float().mean() <= 0.01 else None
