"""How long a text takes to say, held to clips of which both are known."""

from __future__ import annotations

import wave
from pathlib import Path

import pytest

from higgs_server.text.duration import slow_seconds, usual_seconds
from higgs_server.text.normalize import normalize

CLIPS = sorted((Path(__file__).parents[3] / "examples/voice_prompts").glob("*.wav"))


@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip.stem)
def test_the_shipped_clips_take_about_as_long(clip: Path) -> None:
    with wave.open(str(clip)) as sound:
        seconds = sound.getnframes() / sound.getframerate()
    text = normalize(clip.with_suffix(".txt").read_text())
    assert 0.7 * seconds < usual_seconds(text) < 1.3 * seconds < slow_seconds(text)


def test_numbers_are_read_digit_by_digit_and_tags_not_at_all() -> None:
    assert usual_seconds("[SPEAKER0] 1234") > usual_seconds("one two three four")
    assert usual_seconds("[SPEAKER0]") == 0
