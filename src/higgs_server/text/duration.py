"""How long a text takes to say, roughly: for limits and progress, never for timing. Knows no model."""

from __future__ import annotations

import re

from higgs_server.text.chunk import count_words

SECONDS_PER_WORD = 0.5
"""A slow reader's word, or a slow reader's two Chinese characters."""
SECONDS_AROUND = 2.0
"""Silence before and after, a breath, a hesitation."""
SECONDS_PER_SOUND = 10.0
"""Music, laughter and applause take as long as they like."""

_SOUND = re.compile(r"<SE")
_DIGIT = re.compile(r"\d")


def slow_seconds(text: str) -> float:
    """Seconds that a slow reader takes for normalised text. A digit counts as a word: so it is read."""
    words = count_words(text) + len(_DIGIT.findall(text))
    return SECONDS_AROUND + SECONDS_PER_WORD * words + SECONDS_PER_SOUND * len(_SOUND.findall(text))
