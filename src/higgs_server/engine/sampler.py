"""Draws one row of codes for every batch row at once, each by its own parameters, and keeps their delay and end state.

Knows nothing of networks, caches or the host: all of it is tensor arithmetic of fixed shapes without a look at any
value, so that it can be part of a captured graph. Nothing here mixes batch rows: sums, sorts and scans run along one
codebook's logits, so a row's result does not depend on its neighbours.

Noise is a pure function of (seed, row, codebook, draw): output number `(row * codebooks + codebook) * 2 + draw` of a
SplitMix64 generator (Steele, Lea, Flood 2014; it passes BigCrush) that starts at the mixed seed. Draw 0 samples, draw 1
is for the repetition-aware second try.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from higgs_server.engine.sequence import CodeFormat
from higgs_server.types import SamplingParams

LONGEST_RAS_WINDOW = 1024
"""`SamplingParams.ras_win_len` may not be larger."""

NEAR = 64
"""Ordering this many codes is much cheaper than all of them, and enough for the default top_k."""

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def _signed(value: int) -> int:
    """The int64 of the same 64 bits."""
    return value - 2**64 if value >= 2**63 else value


def seed_key(seed: int) -> int:
    """Where a seed's noise starts, as int64: mixed, so that seeds next to each other are strangers."""
    value = (seed + _GOLDEN) & _MASK
    for shift, factor in _MIX:
        value = ((value ^ (value >> shift)) * factor) & _MASK
    return _signed(value ^ (value >> 31))


def _shift_right(value: torch.Tensor, by: int) -> torch.Tensor:
    """Logical shift of int64, which torch only shifts arithmetically."""
    return (value >> by) & ((1 << (64 - by)) - 1)


def uniform(key: torch.Tensor, row: torch.Tensor, codebooks: int) -> torch.Tensor:
    """Noise for one row of codes: key, row int64 [B] -> float32 [2 draws, B, codebooks], multiples of 2^-23 plus 2^-24.

    int64 products wrap modulo 2^64 on every device, which is what the generator wants.
    """
    draw = torch.arange(2, device=key.device).view(2, 1, 1)
    codebook = torch.arange(codebooks, device=key.device)
    index = (row[:, None] * codebooks + codebook) * 2 + draw
    value = key[:, None] + index * _signed(_GOLDEN)
    for shift, factor in _MIX:
        value = (value ^ _shift_right(value, shift)) * _signed(factor)
    value = value ^ _shift_right(value, 31)
    return (_shift_right(value, 41).to(torch.float32) + 0.5) * 2.0**-23


@dataclass(frozen=True, slots=True)
class SamplerState:
    """Everything about the running utterances that a step reads or writes; the first dimension is the slot."""

    active: torch.Tensor
    """bool [S]: draws a row in this step. Ends by itself with the last row."""
    position: torch.Tensor
    """int64 [S]: where in the cache the next step writes."""
    codes: torch.Tensor
    """int64 [S, codebooks]: the row drawn last."""
    row: torch.Tensor
    """int64 [S]: the number of the next row."""
    row_limit: torch.Tensor
    """int64 [S]: how many rows there may be."""
    ramp: torch.Tensor
    """int64 [S]: how many codebooks, from 0 upwards, are forced to end in the next row."""
    key: torch.Tensor
    """int64 [S]: `seed_key` of the seed."""
    temperature: torch.Tensor
    """float32 [S]: 0 takes the likeliest code."""
    top_k: torch.Tensor
    """int64 [S]: the vocabulary's size when off."""
    top_p: torch.Tensor
    """float32 [S]: 1 when off."""
    ras_window: torch.Tensor
    """int64 [S]: 0 when off."""
    ras_repeats: torch.Tensor
    """int64 [S]: a code this often in the window is drawn again."""
    history: torch.Tensor
    """int16 [S, LONGEST_RAS_WINDOW, codebooks]: the last codes, row r at r modulo the length; -1 for BOS and EOS."""

    @classmethod
    def new(cls, slots: int, code_format: CodeFormat, device: torch.device) -> SamplerState:
        """State for `slots` slots, none of them active."""

        def integers(*shape: int) -> torch.Tensor:
            return torch.zeros(slots, *shape, dtype=torch.int64, device=device)

        def floats() -> torch.Tensor:
            return torch.ones(slots, dtype=torch.float32, device=device)

        history = (slots, LONGEST_RAS_WINDOW, code_format.codebooks)
        return cls(
            active=torch.zeros(slots, dtype=torch.bool, device=device),
            position=integers(),
            codes=integers(code_format.codebooks),
            row=integers(),
            row_limit=integers(),
            ramp=integers(),
            key=integers(),
            temperature=floats(),
            top_k=integers().add_(1),
            top_p=floats(),
            ras_window=integers(),
            ras_repeats=integers(),
            history=torch.full(history, -1, dtype=torch.int16, device=device),
        )

    def view(self, start: int, stop: int) -> SamplerState:
        """The same state, slots `start` to `stop` only; shares memory."""
        return SamplerState(**{field.name: getattr(self, field.name)[start:stop] for field in fields(self)})

    def start(self, slot: int, sampling: SamplingParams, row_limit: int, position: int, vocabulary: int) -> None:
        """Makes a slot ready to draw row 1; row 0 stands at `position`, where the prompt ends."""
        assert sampling.seed is not None
        self.active[slot] = True
        self.position[slot] = position
        self.row[slot] = 1
        self.row_limit[slot] = row_limit
        self.ramp[slot] = 0
        self.key[slot] = seed_key(sampling.seed)
        self.temperature[slot] = sampling.temperature
        self.top_k[slot] = min(sampling.top_k or vocabulary, vocabulary)
        self.top_p[slot] = sampling.top_p
        self.ras_window[slot] = min(max(sampling.ras_win_len or 0, 0), LONGEST_RAS_WINDOW)
        self.ras_repeats[slot] = min(sampling.ras_win_max_num_repeat, LONGEST_RAS_WINDOW + 1)
        self.history[slot] = -1

    def park(self, slot: int, position: int = 0) -> None:
        """Takes a slot out of the steps to come; what they write for it goes to `position`, where it does no harm."""
        self.active[slot] = False
        self.position[slot] = position


def reach_of(sampling: SamplingParams, vocabulary: int) -> int:
    """How many of the likeliest codes have to be put in order for these parameters: 0, NEAR or all of them."""
    top_k = sampling.top_k or vocabulary
    if sampling.temperature <= 0 or (top_k >= vocabulary and sampling.top_p >= 1):
        return 0
    return NEAR if top_k <= NEAR < vocabulary else vocabulary


def _keep_likely(logits: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, reach: int) -> torch.Tensor:
    """Sets all but the likeliest logits [B, codebooks, V] to -inf: the k largest, of these the fewest that sum to p.

    Ties with the last one kept are kept too. First k, then p on what is left, like transformers' warpers. A larger
    `reach` than a row needs changes nothing, to the bit: behind its k, the running sum only adds zeros.
    """
    if reach == 0:
        return logits
    ordered = logits.topk(reach, dim=-1).values
    k, p = top_k[:, None, None], top_p[:, None, None]
    kth = ordered.gather(-1, (k.clamp(max=reach) - 1).expand(-1, logits.shape[1], 1))
    kth = torch.where(k < logits.shape[-1], kth, -torch.inf)
    mass = (ordered - ordered[..., :1]).masked_fill(ordered < kth, -torch.inf).exp().cumsum(-1)
    last = (mass < p * mass[..., -1:]).sum(-1, keepdim=True)
    pth = torch.where(p < 1, ordered.gather(-1, last.clamp(max=reach - 1)), -torch.inf)
    return logits.masked_fill(logits < torch.maximum(kth, pth), -torch.inf)


def _pick(logits: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The code at quantile `noise` [B, codebooks] of the distribution logits [B, codebooks, V], by inverse CDF.

    Only codes of positive probability are taken, also where rounding puts the quantile at the very end.
    """
    vocabulary = logits.shape[-1]
    probabilities = logits.softmax(-1)
    cumulated = probabilities.cumsum(-1)
    reached = (cumulated > noise[..., None] * cumulated[..., -1:]) & (probabilities > 0)
    code = torch.arange(vocabulary, device=logits.device)
    first = torch.where(reached, code, vocabulary).amin(-1)
    return torch.where(first < vocabulary, first, logits.argmax(-1))


def draw(state: SamplerState, logits: torch.Tensor, code_format: CodeFormat, reach: int) -> torch.Tensor:
    """Draws the next row of every active slot in `state` and moves its state on, in place.

    logits: float32 [B, codebooks, V] for B slots; reach: the largest `reach_of` the active ones. Returns int64
    [B, codebooks + 1]: the rows, and behind each one 1 where its logits were not finite, else 0. Rows of slots that
    are not active mean nothing.
    """
    codebook = torch.arange(code_format.codebooks, device=logits.device)
    noise = uniform(state.key, state.row, code_format.codebooks)

    greedy = state.temperature <= 0
    scaled = logits / torch.where(greedy, 1.0, state.temperature)[:, None, None]
    sampled = _pick(_keep_likely(scaled, state.top_k, state.top_p, reach), noise[0])
    codes = torch.where(greedy[:, None], logits.argmax(-1), sampled)

    # Repetition-aware sampling (VALL-E 2, arXiv 2406.05370, section 3.3), as the reference implementation counts. It
    # looks at the answer's own rows; the reference's window, from 10 rows on, first reaches into a clip before it too.
    places = torch.arange(LONGEST_RAS_WINDOW, device=logits.device)
    age = (state.row[:, None] - 1 - places) % LONGEST_RAS_WINDOW
    in_window = (age < state.ras_window[:, None])[:, :, None]
    repeats = (in_window & (state.history == codes[:, None, :].to(torch.int16))).sum(1)
    again = (repeats >= state.ras_repeats[:, None]) & (state.ras_window > 0)[:, None]
    codes = torch.where(again, _pick(logits, noise[1]), codes)

    codes = torch.where(codebook >= state.row[:, None], code_format.bos, codes)
    codes = torch.where(codebook < state.ramp[:, None], code_format.eos, codes)

    is_end = codes == code_format.eos
    place = (state.row % LONGEST_RAS_WINDOW)[:, None, None].expand(-1, 1, code_format.codebooks)
    remembered = torch.where(is_end | (codes == code_format.bos), -1, codes).to(torch.int16)
    state.history.scatter_(1, place, remembered[:, None, :])
    state.codes.copy_(torch.where(state.active[:, None], codes, state.codes))
    state.ramp.add_(state.active & is_end.any(-1))  # once begun it goes on: the ramp itself is made of end codes
    state.row.add_(state.active)
    # The row drawn is written by the next step, behind the one this step wrote.
    state.position.add_(state.active)
    state.active.logical_and_(~is_end.all(-1)).logical_and_(state.row < state.row_limit)

    broken = ~torch.isfinite(logits).flatten(1).all(-1)
    return torch.cat([codes, broken[:, None].to(codes.dtype)], dim=1)
