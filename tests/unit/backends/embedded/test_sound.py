"""Pieces that fit together: trimmed, level, soft at the ends."""

from __future__ import annotations

import numpy as np
import pytest

from higgs_server.backends.embedded.sound import LEVEL, PEAK, fade, finish, silence
from higgs_server.types import SAMPLING_RATE


def tone(seconds: float, amplitude: float) -> np.ndarray:
    time = np.arange(round(seconds * SAMPLING_RATE)) / SAMPLING_RATE
    return (amplitude * np.sin(2 * np.pi * 220 * time)).astype(np.float32)


def spoken(amplitude: float = 0.3, before: float = 0.4, after: float = 0.7) -> np.ndarray:
    hiss = np.random.default_rng(1).normal(0, amplitude / 2000, round((before + 1 + after) * SAMPLING_RATE))
    hiss = hiss.astype(np.float32)
    start = round(before * SAMPLING_RATE)
    hiss[start : start + SAMPLING_RATE] += tone(1, amplitude)
    return hiss


def rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(samples**2)))


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.0), (0.3, 0.45), (1.0, 0.1)])
def test_the_silence_around_speech_is_cut_to_the_same_length(before: float, after: float) -> None:
    finished = finish(spoken(before=before, after=after))
    inside = np.flatnonzero(np.abs(finished) > 0.01) / SAMPLING_RATE
    assert inside[0] <= 0.03 + 0.006
    assert len(finished) / SAMPLING_RATE - inside[-1] <= 0.06 + 0.006
    assert inside[-1] - inside[0] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("amplitude", [0.02, 0.3, 1.0])
def test_every_level_becomes_the_same(amplitude: float) -> None:
    middle = finish(spoken(amplitude))[SAMPLING_RATE // 4 : SAMPLING_RATE // 2]
    assert rms(middle) == pytest.approx(LEVEL, rel=0.03)


def test_the_peak_is_limited_where_speech_is_spiky() -> None:
    samples = tone(1, 0.05)
    samples[SAMPLING_RATE // 2] = 1
    assert np.abs(finish(samples)).max() == pytest.approx(PEAK, rel=1e-5)


def test_both_ends_are_zero_and_rise_slowly() -> None:
    finished = finish(tone(1, 0.5))
    assert finished[0] == 0
    assert finished[-1] == 0
    assert np.abs(finished[:24]).max() < 0.1 * np.abs(finished).max()


@pytest.mark.parametrize("samples", [silence(0), silence(1), np.full(3, 1e-5, np.float32)])
def test_nothing_to_be_heard_is_nothing(samples: np.ndarray) -> None:
    assert len(finish(samples)) == 0


def test_the_input_is_left_alone() -> None:
    samples = tone(0.5, 0.5)
    before = samples.copy()
    finish(samples)
    fade(samples, 0.1, 0.1)
    np.testing.assert_array_equal(samples, before)


def test_a_fade_longer_than_the_sound_is_cut_to_it() -> None:
    faded = fade(np.ones(10, np.float32), 1.0, 1.0)
    assert len(faded) == 10
    assert faded[0] == 0
    assert faded[-1] == 0
