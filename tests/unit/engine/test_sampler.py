"""The batched sampler against a plain per-row oracle, the distributions it draws from, and its noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from higgs_server.engine.sampler import SamplerState, reach_of, seed_key, uniform
from higgs_server.engine.sampler import draw as draw_row
from higgs_server.engine.sequence import CodeFormat
from higgs_server.types import SamplingParams

pytestmark = pytest.mark.usefixtures("one_thread")

FORMAT = CodeFormat(codebooks=8, bos=1024, eos=1025)
SMALL = CodeFormat(codebooks=8, bos=14, eos=15)
CPU = torch.device("cpu")


def params(**fields: object) -> SamplingParams:
    return SamplingParams(**{"seed": 0, "ras_win_len": 0, "top_k": 0, "top_p": 1.0, "temperature": 1.0} | fields)


def new_state(each: list[SamplingParams], vocabulary: int, code_format: CodeFormat, limit: int = 5000) -> SamplerState:
    state = SamplerState.new(len(each), code_format, CPU)
    for slot, sampling in enumerate(each):
        state.start(slot, sampling, limit, 100, vocabulary)
    return state


def draw(state: SamplerState, logits: torch.Tensor, code_format: CodeFormat, reach: int | None = None) -> torch.Tensor:
    """Draws with everything in order unless a test says how far."""
    return draw_row(state, logits, code_format, logits.shape[-1] if reach is None else reach)


# --- noise ----------------------------------------------------------------------------------------------------------

MASK = 2**64 - 1


def splitmix(value: int) -> int:
    """SplitMix64's output function, on Python integers."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def plain_noise(seed: int, row: int, codebook: int, again: int, codebooks: int = 8) -> float:
    golden = 0x9E3779B97F4A7C15
    start = splitmix((seed + golden) & MASK)
    value = splitmix((start + golden * ((row * codebooks + codebook) * 2 + again)) & MASK)
    return ((value >> 41) + 0.5) / 2**23


def test_splitmix64_gives_its_published_sequence() -> None:
    """The first outputs for seed 1234567, as listed for the reference implementation."""
    golden, expected = 0x9E3779B97F4A7C15, [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [splitmix((1234567 + golden * n) & MASK) for n in (1, 2, 3)] == expected


@pytest.mark.parametrize("seed", [0, 1, 2, 12345, 2**31, 2**53 + 1, 2**63 - 1])
def test_noise_is_splitmix64_on_tensors_as_on_integers(seed: int) -> None:
    rows = [0, 1, 7, 2047, 100_000]
    noise = uniform(torch.tensor([seed_key(seed)] * len(rows)), torch.tensor(rows), 8)
    for index, row in enumerate(rows):
        for codebook in range(8):
            for again in (0, 1):
                assert noise[again, index, codebook].item() == plain_noise(seed, row, codebook, again)


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """How many standard deviations the chi-square statistic lies from its mean."""
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = len(counts) - 1
    return float((statistic - freedom) / math.sqrt(2 * freedom))


def test_noise_is_uniform_and_independent() -> None:
    """Over rows, over neighbouring seeds, over codebooks, and between the two draws."""
    rows = torch.arange(1, 20_001)
    one_seed = uniform(torch.full((20_000,), seed_key(5)), rows, 8).double().numpy()
    many_seeds = uniform(torch.tensor([seed_key(s) for s in range(20_000)]), torch.ones_like(rows), 8).double().numpy()
    for noise in (one_seed, many_seeds):
        assert 0 < noise.min() < noise.max() < 1
        series = noise.transpose(0, 2, 1).reshape(16, -1)
        for one in series:
            assert abs(chi_square(np.histogram(one, 256, (0, 1))[0], np.full(256, 20_000 / 256))) < 4.5
            lagged = [np.corrcoef(one[:-lag], one[lag:])[0, 1] for lag in (1, 2, 7, 8)]
            assert np.abs(lagged).max() < 4.5 / math.sqrt(20_000)
        across = np.corrcoef(series) - np.eye(16)
        assert np.abs(across).max() < 4.5 / math.sqrt(20_000)
        pairs = np.histogram2d(series[0], series[8], 16, [[0, 1], [0, 1]])[0].ravel()
        assert abs(chi_square(pairs, np.full(256, 20_000 / 256))) < 4.5


# --- the oracle -----------------------------------------------------------------------------------------------------


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    return [w / sum(weights) for w in weights]


def at_quantile(probabilities: list[float], noise: float) -> int:
    total = 0.0
    for code, probability in enumerate(probabilities):
        total += probability
        if probability > 0 and total > noise:
            return code
    raise AssertionError("the quantile lies beyond the distribution")


def likely(logits: list[float], sampling: SamplingParams) -> list[float]:
    """The distribution temperature, top-k and top-p leave, as one reads about it."""
    scaled = [x / sampling.temperature for x in logits]
    order = sorted(range(len(scaled)), key=lambda code: -scaled[code])
    kept = order[: sampling.top_k or len(order)]
    masses = softmax([scaled[code] for code in kept])
    total, nucleus = 0.0, []
    for code, mass in zip(kept, masses, strict=True):
        nucleus.append(code)
        total += mass
        if sampling.top_p < 1 and total >= sampling.top_p:
            break
    shares = dict(zip(nucleus, softmax([scaled[code] for code in nucleus]), strict=True))
    return [shares.get(code, 0.0) for code in range(len(logits))]


class Oracle:
    """One utterance, one code at a time."""

    def __init__(self, sampling: SamplingParams, code_format: CodeFormat) -> None:
        self.sampling, self.format = sampling, code_format
        self.rows: list[list[int]] = [[code_format.bos] * code_format.codebooks]
        self.end_row: int | None = None

    def step(self, logits: np.ndarray) -> list[int]:
        sampling, f, number = self.sampling, self.format, len(self.rows)
        row = []
        for k in range(f.codebooks):
            mine = [float(x) for x in logits[k]]
            if self.end_row is not None and k < number - self.end_row:
                row.append(f.eos)
                continue
            if k >= number:
                row.append(f.bos)
                continue
            if sampling.temperature == 0:
                code = mine.index(max(mine))
            else:
                code = at_quantile(likely(mine, sampling), plain_noise(sampling.seed or 0, number, k, 0))
            window = sampling.ras_win_len or 0
            if window > 0 and code not in (f.bos, f.eos):
                seen = [past[k] for past in self.rows[-window:]]
                if seen.count(code) >= sampling.ras_win_max_num_repeat:
                    code = at_quantile(softmax(mine), plain_noise(sampling.seed or 0, number, k, 1))
            row.append(code)
        if self.end_row is None and f.eos in row:
            self.end_row = number
        self.rows.append(row)
        return row

    @property
    def over(self) -> bool:
        return self.rows[-1] == [self.format.eos] * self.format.codebooks


MIXED = [
    params(seed=1, temperature=0.0),
    params(seed=2),
    params(seed=3, temperature=0.3),
    params(seed=4, top_k=5),
    params(seed=5, top_p=0.6, temperature=1.7),
    params(seed=6, temperature=0.7, top_k=50, top_p=0.95, ras_win_len=7),
    params(seed=7, temperature=0.2, top_k=3, ras_win_len=3, ras_win_max_num_repeat=1),
    params(seed=8, temperature=0.0, ras_win_len=20, ras_win_max_num_repeat=2),
    params(seed=2**63 - 1, top_k=1),
]


def random_logits(seed: int, batch: int, vocabulary: int, spread: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((batch, 8, vocabulary), generator=generator) * spread


@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_every_row_of_a_mixed_batch_is_what_the_oracle_draws(spread: float) -> None:
    """16 codes, so that ends, stray begins and repetitions all come up; 60 rows, ended utterances stay as they are."""
    state = new_state(MIXED, 16, SMALL)
    oracles = [Oracle(sampling, SMALL) for sampling in MIXED]
    redrawn = 0
    for step in range(60):
        logits = random_logits(step, len(MIXED), 16, spread)
        logits[..., SMALL.eos] -= 1.6 * spread
        drawn = draw(state, logits, SMALL).tolist()
        for slot, oracle in enumerate(oracles):
            assert bool(state.active[slot]) or oracle.over or drawn[slot][:8] == [SMALL.eos] * 8
            if not oracle.over:
                assert drawn[slot] == [*oracle.step(logits[slot].numpy()), 0], (step, slot)
            assert state.codes[slot].tolist() == oracle.rows[-1]
            assert state.position[slot] == 100 + len(oracle.rows) - 1
        redrawn += sum(not oracle.over for oracle in oracles[5:8])
    assert redrawn > 60
    assert any(oracle.over for oracle in oracles)


def test_the_true_vocabulary_too() -> None:
    state = new_state(MIXED, 1026, FORMAT)
    oracles = [Oracle(sampling, FORMAT) for sampling in MIXED]
    for step in range(12):
        logits = random_logits(100 + step, len(MIXED), 1026, 2.0)
        drawn = draw(state, logits, FORMAT)[:, :8].tolist()
        assert drawn == [oracle.step(logits[slot].numpy()) for slot, oracle in enumerate(oracles)]


@pytest.mark.parametrize(("row", "codebook"), [(1, 0), (2, 1), (9, 0), (9, 3), (20, 7), (12, 5)])
def test_an_end_code_in_any_codebook_starts_the_ramp(row: int, codebook: int) -> None:
    state = new_state([params(temperature=0.0)], 1026, FORMAT)
    oracle = Oracle(params(temperature=0.0), FORMAT)
    for number in range(1, 40):
        logits = random_logits(number, 1, 1026, 1.0)
        logits[:, :, FORMAT.eos] = -9.0
        if number == row:
            logits[:, codebook, FORMAT.eos] = 99.0
        drawn = draw(state, logits, FORMAT)[0, :8].tolist()
        assert drawn == oracle.step(logits[0].numpy())
        if number > row:
            assert drawn[: number - row] == [FORMAT.eos] * min(number - row, 8)
        if not state.active[0]:
            break
    assert number == row + 8


def test_the_row_limit_ends_a_slot() -> None:
    state = new_state([params(), params()], 1026, FORMAT, limit=4)
    state.row_limit[1] = 6
    for _ in range(8):
        draw(state, random_logits(1, 2, 1026, 1.0), FORMAT)
    assert state.row.tolist() == [4, 6]
    assert state.position.tolist() == [103, 105]
    assert not state.active.any()


# --- independence of neighbours -------------------------------------------------------------------------------------


def test_a_row_alone_is_the_row_in_any_batch_to_the_bit() -> None:
    batch = new_state(MIXED[:8], 1026, FORMAT)
    alone = [new_state([sampling], 1026, FORMAT) for sampling in MIXED[:8]]
    for step in range(30):
        logits = random_logits(step, 8, 1026, 2.5)
        together = draw(batch, logits, FORMAT)
        for slot, state in enumerate(alone):
            reach = reach_of(MIXED[slot], 1026)
            assert torch.equal(draw(state, logits[slot : slot + 1], FORMAT, reach)[0], together[slot])


def test_a_slot_that_is_not_active_keeps_its_state_and_broken_neighbours_do_no_harm() -> None:
    state = new_state([params(seed=1), params(seed=2), params(seed=3)], 1026, FORMAT)
    alone = new_state([params(seed=1)], 1026, FORMAT)
    state.park(1, 55)
    parked = [field.clone() for field in (state.codes[1], state.row[1], state.ramp[1])]
    for step in range(12):
        logits = random_logits(step, 3, 1026, 2.0)
        logits[1:] = torch.tensor([torch.nan, torch.inf, -torch.inf])[step % 3]
        drawn = draw(state, logits, FORMAT)
        assert drawn[:, 8].tolist() == [0, 1, 1]
        assert ((drawn >= 0) & (drawn < 1026)).all()
        assert torch.equal(drawn[0], draw(alone, logits[:1], FORMAT)[0])
    assert all(torch.equal(a, b) for a, b in zip(parked, (state.codes[1], state.row[1], state.ramp[1]), strict=True))
    assert state.position[1] == 55


def test_a_slot_starts_afresh() -> None:
    """Neither the end nor the repetitions of the last tenant reach the next."""
    sampling = params(seed=9, temperature=0.5, ras_win_len=1000, ras_win_max_num_repeat=1)
    state, fresh = new_state([sampling], 16, SMALL), new_state([sampling], 16, SMALL)
    for step in range(60):
        logits = random_logits(step, 1, 16, 1.0)
        logits[..., SMALL.eos] = 99.0 if step > 50 else -99.0
        draw(state, logits, SMALL)
    assert not state.active[0]
    state.start(0, sampling, 5000, 100, 16)
    for step in range(50):
        logits = random_logits(1000 + step, 1, 16, 1.0)
        assert torch.equal(draw(state, logits, SMALL), draw(fresh, logits, SMALL))


# --- distributions --------------------------------------------------------------------------------------------------

DRAWS = 6_000


def drawn_codes(sampling: SamplingParams, logits: torch.Tensor, prepare: object = None) -> torch.Tensor:
    """Codebook 0's codes for the same logits [V], by 6,000 seeds at row 20."""
    vocabulary = len(logits)
    codes = []
    for first in range(0, DRAWS, 2000):
        state = SamplerState.new(2000, SMALL, CPU)
        state.start(0, sampling, 5000, 0, vocabulary)
        for name in ("temperature", "top_k", "top_p", "ras_window", "ras_repeats", "row_limit", "active"):
            getattr(state, name)[:] = getattr(state, name)[0].clone()
        state.key[:] = torch.tensor([seed_key(first + n) for n in range(2000)])
        state.row[:] = 20
        if callable(prepare):
            prepare(state)
        codes.append(draw(state, logits.expand(2000, 8, -1), SMALL, reach_of(sampling, vocabulary))[:, 0])
    return torch.cat(codes)


@pytest.mark.parametrize(
    "sampling",
    [
        params(),
        params(temperature=0.5),
        params(temperature=2.0),
        params(top_k=4),
        params(top_p=0.7),
        params(temperature=0.7, top_k=8, top_p=0.95),
    ],
    ids=repr,
)
def test_codes_come_as_often_as_they_should(sampling: SamplingParams) -> None:
    logits = torch.tensor([1.5, 0.2, -1.0, 2.0, 0.0, 1.9, -3.0, 0.7, 1.1, -0.4, 0.9, 0.3, -2.0, 0.5, -9.0, -9.0])
    expected = np.array(likely(logits.tolist(), sampling)) * DRAWS
    counts = np.bincount(drawn_codes(sampling, logits).numpy(), minlength=16)
    assert not counts[expected == 0].any()
    common = expected >= 5
    assert counts[~common].sum() <= expected[~common].sum() + 10
    assert abs(chi_square(counts[common], expected[common])) < 4.5


def test_a_repeated_code_is_drawn_again_from_all_codes_at_temperature_one() -> None:
    """Top-k 1 always gives code 3; with 3 twice in the window the code comes from the untouched distribution."""
    logits = torch.tensor([1.5, 0.2, -1.0, 2.0, 0.0, 1.9, -3.0, 0.7, 1.1, -0.4, 0.9, 0.3, -2.0, 0.5, -9.0, -9.0])
    sampling = params(temperature=0.2, top_k=1, ras_win_len=7, ras_win_max_num_repeat=2)

    def repeated(*rows: int) -> object:
        def prepare(state: SamplerState) -> None:
            for row in rows:
                state.history[:, row, 0] = 3

        return prepare

    counts = np.bincount(drawn_codes(sampling, logits, repeated(13, 19)).numpy(), minlength=16)
    expected = np.array(softmax(logits.tolist())) * DRAWS
    assert abs(chi_square(counts[expected >= 5], expected[expected >= 5])) < 4.5
    for harmless in (repeated(12, 19), repeated(19), repeated(20, 21, 22)):
        assert (drawn_codes(sampling, logits, harmless) == 3).all()


def test_the_window_may_be_as_long_as_the_wire_allows_and_wraps_around() -> None:
    sampling = params(temperature=0.0, ras_win_len=1024, ras_win_max_num_repeat=2)
    state, oracle = new_state([sampling], 16, SMALL), Oracle(sampling, SMALL)
    state.row[0] = 3000
    oracle.rows = [[SMALL.bos] * 8] * 3000
    for step in range(40):
        logits = random_logits(step, 1, 16, 2.0)
        logits[..., SMALL.eos] = -30.0
        assert draw(state, logits, SMALL)[0, :8].tolist() == oracle.step(logits[0].numpy())
