"""The voices that ship: complete, well formed, and with a clip and a transcript each."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from higgs_server.backends.embedded.voices import VOICES, default_voice, style
from higgs_server.types import SAMPLING_RATE

CLIPS = Path(__file__).parents[4] / "examples/voice_prompts"


def test_the_names_people_know_are_there() -> None:
    assert {"belinda", "chadwick", "mabel", "en_man", "en_woman", "zh_woman", "zh_man"} < set(VOICES)
    assert len({voice.pack for voice in VOICES.values()}) == len(VOICES) == 8


@pytest.mark.parametrize("name", VOICES)
def test_a_style_for_every_length(name: str) -> None:
    rows = [style(VOICES[name], tokens) for tokens in (1, 2, 508, 510)]
    for row in rows:
        assert row.shape == (256,)
        assert row.dtype == np.float32
        assert np.isfinite(row).all()
    assert not np.array_equal(rows[0], rows[2])


def test_default_voices_take_turns() -> None:
    assert default_voice("en").name == "belinda"
    assert default_voice("zh").name == "zh_woman"
    assert [default_voice("en", n).gender for n in range(4)] == ["feminine", "masculine"] * 2
    assert default_voice("en", 5) == default_voice("en", 0)


@pytest.mark.parametrize("name", VOICES)
def test_a_clip_of_five_to_eight_seconds_with_its_transcript(name: str) -> None:
    with wave.open(str(CLIPS / f"{name}.wav")) as clip:
        assert (clip.getnchannels(), clip.getsampwidth(), clip.getframerate()) == (1, 2, SAMPLING_RATE)
        assert 5 <= clip.getnframes() / SAMPLING_RATE <= 8
        samples = np.frombuffer(clip.readframes(clip.getnframes()), "<i2") / 32768
    assert 0.3 < np.abs(samples).max() < 0.99
    assert 0.04 < np.sqrt(np.mean(samples**2)) < 0.09
    assert (CLIPS / f"{name}.txt").read_text("utf-8").strip()


def test_nothing_else_lies_among_the_clips() -> None:
    assert {file.stem for file in CLIPS.iterdir() if file.suffix in (".wav", ".txt")} == set(VOICES)
