"""Another speed, the same pitch, however the samples come."""

from __future__ import annotations

import numpy as np
import pytest

from higgs_server.audio.tempo import Tempo
from higgs_server.types import SAMPLING_RATE as RATE
from higgs_server.types import InvalidRequest, Samples

SPEEDS = [0.25, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0]
every_speed = pytest.mark.parametrize("speed", SPEEDS)


def tone(frequency: float, seconds: float) -> Samples:
    time = np.arange(round(seconds * RATE)) / RATE
    return (0.5 * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def at(speed: float, samples: Samples, size: int | None = None) -> Samples:
    tempo = Tempo(speed)
    parts = [tempo.feed(samples[i : i + (size or len(samples))]) for i in range(0, len(samples), size or len(samples))]
    return np.concatenate([*parts, tempo.finish()])


@every_speed
def test_length_follows_the_speed(speed: float) -> None:
    heard = at(speed, tone(440, 6.0), 480)
    assert len(heard) * speed == pytest.approx(6 * RATE, rel=0.02)


@every_speed
def test_pitch_and_loudness_stay(speed: float) -> None:
    heard = at(speed, tone(440, 4.0))
    spectrum = np.abs(np.fft.rfft(heard * np.hanning(len(heard))))
    assert abs(spectrum.argmax() * RATE / len(heard) - 440) < 5
    assert np.sqrt(np.mean(heard**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.1)


@every_speed
def test_pieces_make_the_same_sound(speed: float) -> None:
    """The same length; where two windows are blended, a hundredth of full scale may differ."""
    samples = tone(440, 1.5)
    np.testing.assert_allclose(at(speed, samples), at(speed, samples, 331), atol=0.01)


@every_speed
def test_the_order_of_sounds_stays_up_to_the_end(speed: float) -> None:
    """Three tones, each a third of the result, the last one up to its end."""
    frequencies = [300.0, 900.0, 2000.0]
    heard = at(speed, np.concatenate([tone(frequency, 2.0) for frequency in frequencies]))
    for frequency, third in zip(frequencies, np.array_split(heard, 3), strict=True):
        middle = third[len(third) // 5 : -len(third) // 5]
        spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
        assert abs(spectrum.argmax() * RATE / len(middle) - frequency) < 15
    assert np.abs(heard[-240:]).max() > 0.4


@pytest.mark.parametrize("speed", [speed for speed in SPEEDS if speed != 1])
def test_sound_comes_while_it_is_fed(speed: float) -> None:
    tempo = Tempo(speed)
    fed = 0
    while not len(tempo.feed(tone(440, 0.02))):
        fed += 1
        assert fed < 13, "a quarter of a second was fed and nothing came out"


def test_speed_one_changes_nothing() -> None:
    samples = np.random.default_rng(0).standard_normal(5000).astype(np.float32) * 3
    np.testing.assert_array_equal(at(1.0, samples, 777), samples)


@every_speed
def test_nothing_fed_is_nothing_heard(speed: float) -> None:
    tempo = Tempo(speed)
    assert len(tempo.feed(np.zeros(0, np.float32))) == len(tempo.finish()) == 0


@pytest.mark.parametrize("speed", [0.0, 0.249, 4.01, -1.0, float("nan"), float("inf")])
def test_a_speed_out_of_range_is_refused(speed: float) -> None:
    with pytest.raises(InvalidRequest, match=r"0\.25 to 4") as refused:
        Tempo(speed)
    assert refused.value.param == "speed"
