"""The sampler's Triton kernels against the sampler in torch: the same noise, the same rows, the same state.

Without an NVIDIA GPU Triton's interpreter runs the kernels, slowly; with one, the tests go on for longer. The torch
version runs on the CPU either way.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from devices import DEVICES
from higgs_server.engine import draw_kernel, sampler
from higgs_server.engine.draw_kernel import _keep_likely, _rank, _uniform
from higgs_server.engine.sampler import LONGEST_RAS_WINDOW, SamplerState, seed_key, uniform
from higgs_server.engine.sequence import CodeFormat
from higgs_server.types import SamplingParams

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # NumPy, on which the interpreter calculates, warns of what broken logits are made for.
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),
]

CPU, INFINITY = torch.device("cpu"), torch.inf
NEAR = 1e-5
"""How far in probability the noise may be from where codes change, for another one to be a matter of rounding."""


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def params(**given: object) -> SamplingParams:
    return SamplingParams(**{"seed": 0, "ras_win_len": 0, "top_k": 0, "top_p": 1.0, "temperature": 1.0} | given)


KINDS = [
    params(seed=1, temperature=0.0),
    params(seed=2, temperature=0.3),
    params(seed=3),
    params(seed=4, top_k=5),
    params(seed=5, top_p=0.6, temperature=1.7),
    params(seed=6, temperature=0.7, top_k=20, top_p=0.95, ras_win_len=7),
    params(seed=7, temperature=0.2, top_k=3, top_p=0.99, ras_win_len=3, ras_win_max_num_repeat=1),
    params(seed=8, temperature=0.0, ras_win_len=1024),
    params(seed=2**63 - 1, top_k=1),
    params(seed=9, top_p=1e-9, top_k=31),
    params(seed=10, temperature=2.0, top_p=0.999, ras_win_len=20),
]


def new_state(
    kinds: list[SamplingParams], code_format: CodeFormat, vocabulary: int, limit: int = 10**6
) -> SamplerState:
    state = SamplerState.new(len(kinds), code_format, CPU)
    for slot, sampling in enumerate(kinds):
        state.start(slot, sampling, limit, 100 + slot, vocabulary)
    return state


def copied(state: SamplerState, device: torch.device) -> SamplerState:
    return SamplerState(**{field.name: getattr(state, field.name).to(device, copy=True) for field in fields(state)})


def remember(state: SamplerState, slot: int, row: int, generator: torch.Generator) -> None:
    """As if the slot had come to `row` by few codes, again and again."""
    state.row[slot] = row
    state.history[slot] = torch.randint(-1, 4, state.history[slot].shape, generator=generator, dtype=torch.int16)


def logits_of_all_kinds(step: int, batch: int, codebooks: int, vocabulary: int) -> torch.Tensor:
    """Those of a network most of the time, else with ties, with codes that cannot be, or broken in some way."""
    generator = torch.Generator().manual_seed(step)
    logits = torch.randn((batch, codebooks, vocabulary), generator=generator) * (1.0, 3.0)[step % 2]
    logits[..., :4] += 4.0  # codes that are repeated
    logits[..., vocabulary - 1] -= 5.0  # an end comes late, so that there is something to see
    where = torch.randint(0, vocabulary - 2, (batch, codebooks, 1), generator=generator)
    for slot in range(batch):
        mine = logits[slot]
        match (step + 5 * slot) % 16:
            case 1 | 2:
                mine.mul_(2).round_().div_(2)
            case 3:
                mine.zero_()[:, ::2] *= -1.0
            case 4:
                mine[torch.rand(mine.shape, generator=generator) < 0.5] = -INFINITY
            case 5:
                mine.fill_(-INFINITY).scatter_(1, where[slot], 0.5)
            case 6:
                mine.fill_((-INFINITY, INFINITY, torch.nan)[step % 3])
            case 7:
                mine.scatter_(1, where[slot], torch.nan)
            case 8:
                mine.scatter_(1, where[slot], -torch.nan)
                mine[:, ::7] = INFINITY
            case 9:
                mine.scatter_(1, where[slot], INFINITY)
            case 10:
                mine.mul_(1e38)  # some become infinite by the temperature
    return logits


class Pair:
    """One batch twice: drawn by the kernels on a device, and by torch on the CPU."""

    def __init__(self, state: SamplerState, code_format: CodeFormat, device: torch.device) -> None:
        self.torch, self.kernels = state, copied(state, device)
        self.format, self.device = code_format, device
        self.drawn = self.otherwise = 0

    def step(self, logits: torch.Tensor) -> torch.Tensor:
        """Asserts the same rows and the same state behind them, but for codes that rounding may decide."""
        vocabulary = logits.shape[-1]
        before = copied(self.torch, CPU)
        expected = sampler.draw(self.torch, logits, self.format, vocabulary)
        actual = draw_kernel.draw(self.kernels, logits.to(self.device), self.format, vocabulary).cpu()
        differs = (actual != expected).any(1)
        if differs.any():
            assert (actual == self.almost(before, logits)).any(0)[differs].all()
        for field in fields(self.torch):
            ours, theirs = (getattr(state, field.name) for state in (self.kernels, self.torch))
            assert torch.equal(ours.cpu()[~differs], theirs[~differs]), field.name
            ours.copy_(theirs)
        self.drawn += expected.numel()
        self.otherwise += int((actual != expected).sum())
        return expected

    def almost(self, before: SamplerState, logits: torch.Tensor) -> torch.Tensor:
        """What torch draws with noise and top-p that are a little less or more: [9, B, codebooks + 1]."""
        rows = []
        with pytest.MonkeyPatch.context() as patch:
            for noise, p in [(noise, p) for noise in (-NEAR, 0.0, NEAR) for p in (-NEAR, 0.0, NEAR)]:
                patch.setattr(sampler, "uniform", lambda *given, by=noise: (uniform(*given) + by).clamp(0, 1 - 1e-7))
                state = copied(before, CPU)
                state.top_p[state.top_p < 1] += p
                rows.append(sampler.draw(state, logits, self.format, logits.shape[-1]))
        return torch.stack(rows)


# --- the parts --------------------------------------------------------------------------------------------------------


@triton.jit
def _write_noise(key, row, noise, CODEBOOKS: tl.constexpr):
    place = tl.program_id(0)
    for draw in tl.static_range(2):
        value = _uniform(tl.load(key + place), tl.load(row + place), tl.program_id(1), draw, CODEBOOKS)
        tl.store(noise + (draw * tl.num_programs(0) + place) * CODEBOOKS + tl.program_id(1), value)


def test_noise_is_the_same_to_the_bit(device: torch.device) -> None:
    places = [(seed, row) for seed in (0, 1, 12345, 2**53 + 1, 2**63 - 1) for row in (1, 2, 7, 2047, 2**31)]
    key, row = torch.tensor([[seed_key(seed), row] for seed, row in places]).T.contiguous()
    noise = torch.empty((2, len(places), 3), device=device)
    _write_noise[(len(places), 3)](key.to(device), row.to(device), noise, CODEBOOKS=3, enable_fp_fusion=False)
    assert torch.equal(noise.cpu(), uniform(key, row, 3))


@triton.jit
def _write_kept(logits, top_k, top_p, kept, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr):
    place, code = tl.program_id(0), tl.arange(0, BLOCK)
    mine = tl.load(logits + place * VOCABULARY + code, mask=code < VOCABULARY, other=float("-inf"))
    keys, top, _, weights = _rank(mine, code)
    weights = _keep_likely(keys, top, weights, tl.load(top_k + place), tl.load(top_p + place), VOCABULARY)
    tl.store(kept + place * VOCABULARY + code, weights, mask=code < VOCABULARY)


@pytest.mark.parametrize("vocabulary", [32, 40, 1026])
def test_the_same_codes_are_kept(device: torch.device, vocabulary: int) -> None:
    """All of them are seen here, drawn or not: those tied with the last one kept, and those too unlikely to come up."""
    choices = [(k, p) for k in (1, 2, 3, 20, vocabulary - 1, vocabulary) for p in (1e-9, 0.3, 0.5, 0.95, 1.0)]
    logits = torch.randn((len(choices), 1, vocabulary), generator=torch.Generator().manual_seed(vocabulary)) * 3.0
    logits[::3].round_()
    logits[1::6, :, ::2] = -INFINITY
    logits[5] = -0.0
    logits[5, :, ::2] = 0.0
    top_k, top_p = torch.tensor([k for k, _ in choices]), torch.tensor([p for _, p in choices])
    kept = torch.empty_like(logits, device=device)
    arguments = [tensor.to(device) for tensor in (logits, top_k, top_p)]
    sizes = {"VOCABULARY": vocabulary, "BLOCK": triton.next_power_of_2(vocabulary)}
    _write_kept[(len(choices),)](*arguments, kept, **sizes, enable_fp_fusion=False)
    expected = sampler._keep_likely(logits, top_k, top_p, vocabulary)
    expected = (expected - expected.amax(-1, keepdim=True)).exp()
    assert torch.equal(kept.cpu() > 0, expected > 0)
    assert torch.allclose(kept.cpu(), expected, rtol=1e-5, atol=0)


# --- whole steps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codebooks", "vocabulary", "steps"), [(2, 40, 10), (3, 32, 2), (8, 1026, 1)], ids=["small", "unpadded", "true"]
)
def test_every_step_is_torchs(device: torch.device, codebooks: int, vocabulary: int, steps: int) -> None:
    code_format = CodeFormat(codebooks, bos=vocabulary - 2, eos=vocabulary - 1)
    state = new_state(KINDS, code_format, vocabulary)
    generator = torch.Generator().manual_seed(1)
    for slot, row in ((5, LONGEST_RAS_WINDOW - 2), (6, 9), (7, 3000), (10, 50)):
        remember(state, slot, row, generator)
    state.row_limit[2] = 6
    state.park(3, 55)
    pair = Pair(state, code_format, device)
    drawn_again = 0
    for step in range(steps * (200 if device.type == "cuda" else 1)):
        logits = logits_of_all_kinds(step, len(KINDS), codebooks, vocabulary)
        if step % 9 == 3:
            logits[[1, 4, 7], 1, code_format.eos] = 99.0
        if step % 9 == 8:  # who is at an end begins again
            for slot in (~pair.torch.active).nonzero().flatten().tolist():
                for state in (pair.torch, pair.kernels):
                    state.start(slot, KINDS[slot], 10**6, 100, vocabulary)
        once = copied(pair.torch, CPU)
        once.ras_window.zero_()
        drawn_again += int((pair.step(logits) != sampler.draw(once, logits, code_format, vocabulary)).sum())
    assert drawn_again > 0
    assert pair.otherwise <= pair.drawn / 1000


def test_an_utterance_from_its_delay_through_its_ramp(device: torch.device) -> None:
    """Three utterances end by codes, one by its limit; the slots around them stay as they are."""
    code_format = CodeFormat(3, bos=14, eos=15)
    state = new_state([params(seed=n, temperature=n % 2) for n in range(6)], code_format, 16)
    state.row_limit[4] = 4
    untouched = copied(state, CPU)
    pair = Pair(state, code_format, device)
    whole, (pair.torch, pair.kernels) = pair.kernels, (pair.torch.view(1, 5), pair.kernels.view(1, 5))
    for step in range(10):
        logits = torch.randn((4, 3, 16), generator=torch.Generator().manual_seed(step))
        logits[..., 14:] = -9.0
        for slot, codebook, end in ((0, 0, 4), (1, 2, 5), (2, 1, 6)):
            logits[slot, codebook, 15] = 99.0 if step == end else -9.0
        rows = pair.step(logits)
        assert ((rows[:, :3] == 14).sum(1) == max(2 - step, 0)).all()
    assert whole.row.tolist() == [1, 9, 10, 11, 4, 1]
    assert whole.active.tolist() == [True, False, False, False, False, True]
    for field in fields(whole):
        assert torch.equal(getattr(whole, field.name)[::5].cpu(), getattr(untouched, field.name)[::5])


def test_a_row_alone_is_the_row_in_any_batch_to_the_bit(device: torch.device) -> None:
    code_format = CodeFormat(2, bos=1024, eos=1025)
    together = new_state(KINDS, code_format, 1026)
    for slot in (5, 6, 7, 10):
        remember(together, slot, 20, torch.Generator().manual_seed(slot))
    together = copied(together, device)
    alone = copied(together, device)
    for step in range(20 if device.type == "cuda" else 1):
        logits = logits_of_all_kinds(step, len(KINDS), 2, 1026).to(device)
        rows = draw_kernel.draw(together, logits, code_format, 1026)
        for slot in range(len(KINDS)):
            row = draw_kernel.draw(alone.view(slot, slot + 1), logits[slot : slot + 1], code_format, 0)
            assert torch.equal(row[0], rows[slot])
    for field in fields(together):
        assert torch.equal(getattr(together, field.name), getattr(alone, field.name)), field.name


def test_the_kernels_are_tried_before_they_are_trusted(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    code_format = CodeFormat(3, bos=38, eos=39)
    assert draw_kernel.tried(code_format, 40, device) is draw_kernel.draw
    right = sampler.draw

    def forgetful(state: SamplerState, *arguments: Any) -> torch.Tensor:
        drawn = right(state, *arguments)
        state.row.sub_(1)
        return drawn

    def another_seed(state: SamplerState, *arguments: Any) -> torch.Tensor:
        state.key.add_(1)
        return right(state, *arguments)

    for other in (forgetful, another_seed):
        monkeypatch.setattr(sampler, "draw", other)
        assert draw_kernel.tried(code_format, 40, device) is None
