"""How long a text takes to say, roughly: for limits and progress, never for timing. Knows no model."""

from __future__ import annotations

import re

from higgs_server.text.chunk import count_words
from higgs_server.text.dialogue import TAG
from higgs_server.text.sentences import CJK

SECONDS_PER_WORD = 0.5
"""A slow reader's word, or a slow reader's two Chinese characters."""
SECONDS_AROUND = 2.0
"""Silence before and after, a breath, a hesitation."""
SECONDS_PER_SOUND = 10.0
"""Music, laughter and applause take as long as they like."""

USUAL_SECONDS_PER_WORD = 0.31
USUAL_SECONDS_PER_CHARACTER = 0.20
"""Of the shipped clips: 105 English words in 32.4 s, 81 Chinese characters in 16.0 s."""

_CHARACTER = re.compile(f"[{CJK}]")
_SOUND = re.compile(r"<SE")
_DIGIT = re.compile(r"\d")


def slow_seconds(text: str) -> float:
    """Seconds that a slow reader takes for normalised text."""
    return SECONDS_AROUND + SECONDS_PER_WORD * _words(text) + SECONDS_PER_SOUND * len(_SOUND.findall(text))


def usual_seconds(text: str) -> float:
    """Seconds that normalised text takes at the pace of the shipped voices. A sound counts as a word."""
    characters = len(_CHARACTER.findall(text))
    return USUAL_SECONDS_PER_WORD * (_words(text) - characters) + USUAL_SECONDS_PER_CHARACTER * characters


def _words(text: str) -> int:
    """A digit counts as a word more: so it is read."""
    return count_words(text) + len(_DIGIT.findall(TAG.sub("", text)))
