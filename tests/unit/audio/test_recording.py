"""What the voice check says of good and of poor recordings, and how a recording is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soxr

from higgs_server.audio.decode import decode
from higgs_server.audio.encoders import new_encoder
from higgs_server.audio.recording import PEAK, check, tidy
from higgs_server.text.chunk import count_words
from higgs_server.types import SAMPLING_RATE, Samples

VOICES = sorted((Path(__file__).resolve().parents[3] / "examples/voice_prompts").glob("*.wav"))
RANDOM = np.random.default_rng(7)


def recording(file: Path) -> Samples:
    return decode(file.read_bytes()).samples


def silence(seconds: float) -> Samples:
    return np.zeros(int(seconds * SAMPLING_RATE), np.float32)


def noise(count: int, level: float) -> Samples:
    return RANDOM.normal(0, level, count).astype(np.float32)


def coded(samples: Samples, form: str) -> Samples:
    encoder = new_encoder(form, streamed=False)  # type: ignore[arg-type]
    return decode(encoder.feed(samples) + encoder.finish()).samples


def codes(samples: Samples, words: int | None = None) -> set[str]:
    problems = check(samples, words)
    for problem in problems:
        assert all((problem.message, problem.advice, problem.zh_message, problem.zh_advice))
    return {problem.code for problem in problems}


@pytest.fixture
def speech() -> Samples:
    return recording(VOICES[0])


@pytest.mark.parametrize("file", VOICES, ids=lambda file: file.stem)
def test_the_voices_that_ship_pass_also_through_other_formats(file: Path) -> None:
    samples, words = recording(file), count_words(file.with_suffix(".txt").read_text())
    assert codes(samples, words) == codes(samples) == set()
    assert codes(coded(samples, "mp3"), words) == set()
    assert codes(soxr.resample(soxr.resample(samples, 24_000, 16_000), 16_000, 24_000), words) == set()
    loudness = samples * np.float32(0.1)
    assert codes(loudness, words) == codes(tidy(samples), words) == set()


def test_length(speech: Samples) -> None:
    assert codes(speech[:12_000]) == {"too_short"}
    # Silence around it makes nothing longer.
    assert codes(np.concatenate([silence(5), speech[:12_000], silence(5)])) == {"too_short"}
    assert codes(np.tile(speech, 60)[: 60 * SAMPLING_RATE]) == {"too_long"}


def test_nothing_and_next_to_nothing(speech: Samples) -> None:
    assert codes(silence(5)) == codes(noise(120_000, 1e-4)) == codes(speech[:100]) == codes(silence(0)) == {"silent"}
    assert codes(speech * np.float32(0.015)) == {"too_quiet"}


@pytest.mark.parametrize("form", [None, "mp3", "opus"])
def test_what_was_cut_off_at_the_top(speech: Samples, form: str | None) -> None:
    peak = np.abs(speech).max()
    cut = np.clip(speech / peak * 3, -1, 1)
    assert codes(cut if form is None else coded(cut, form)) == {"clipped"}
    # Turned down afterwards it is the same.
    assert codes(cut * np.float32(0.3)) == {"clipped"}


@pytest.mark.parametrize("file", VOICES, ids=lambda file: file.stem)
def test_noise(file: Path) -> None:
    samples = recording(file)
    level = float(np.sqrt(np.mean(samples**2)))
    assert codes(samples + noise(len(samples), level / 10)) == set()
    assert "noisy" in codes(samples + noise(len(samples), level / 2))
    assert codes(noise(10 * SAMPLING_RATE, 0.3)) == {"noisy"}


def test_pauses(speech: Samples) -> None:
    assert codes(np.concatenate([speech, silence(18), speech])) == {"mostly_silence"}


def test_a_telephone(speech: Samples) -> None:
    assert codes(soxr.resample(soxr.resample(speech, 24_000, 8_000), 8_000, 24_000)) == {"narrow_band"}


def test_a_transcript_of_something_else(speech: Samples) -> None:
    assert codes(speech, 300) == codes(speech, 1) == codes(speech, 0) == {"transcript_mismatch"}


def test_several_problems_at_once(speech: Samples) -> None:
    short = np.clip(speech[:24_000] * 20, -1, 1) + noise(24_000, 0.4)
    assert codes(short, 80) >= {"too_short", "noisy", "transcript_mismatch"}


def test_a_recording_is_kept_without_the_silence_around_it_at_one_level(speech: Samples) -> None:
    lengths = []
    for gain, around in ((1.0, 0.0), (0.05, 3.0), (1.8, 1.0)):
        kept = tidy(np.concatenate([silence(around), speech * np.float32(gain), silence(around)]))
        loud = np.abs(kept) > 0.02
        assert kept.dtype == np.float32
        assert np.abs(kept).max() <= PEAK + 1e-6
        assert 20 * np.log10(np.sqrt(np.mean(kept[loud] ** 2))) == pytest.approx(-18, abs=2)
        lengths.append(len(kept))
    assert max(lengths) - min(lengths) <= 0.2 * SAMPLING_RATE
    assert codes(tidy(speech)) == set()
    assert np.array_equal(tidy(silence(2)), silence(2))
    assert len(tidy(silence(0))) == 0
