"""Spoken pieces made to fit together: equal in level, without the network's own silence, soft at both ends.

Knows no text and no voice. Everything is float32 mono at 24 kHz and a function of the samples alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from higgs_server.types import SAMPLING_RATE, Samples

LEVEL = 0.08
"""Root mean square of the spoken parts (-22 dBFS): every voice reaches it with its peaks below PEAK, mostly."""
PEAK = 0.95
_HOP = SAMPLING_RATE // 200
"""5 ms: short enough to find where a consonant begins."""
_SPEECH = 0.1
"""A frame within 20 dB of the loudest one counts as speech when the level is measured."""
_AUDIBLE = 0.01
"""A frame within 40 dB of the loudest one is kept; below it the network breathes and hisses."""
_BEFORE, _AFTER = 0.03, 0.06
"""Seconds kept around what is audible: soft onsets, and consonants that die away."""
_FADE_IN, _FADE_OUT = 0.005, 0.02


def silence(seconds: float) -> Samples:
    """Nothing, for so long."""
    return np.zeros(round(seconds * SAMPLING_RATE), np.float32)


def finish(samples: Samples) -> Samples:
    """One piece as the network made it -> trimmed, at LEVEL unless PEAK forbids it, starting and ending at zero.

    Empty where there is nothing to be heard.
    """
    loudness = _loudness(samples)
    loudest = loudness.max(initial=0.0)
    if loudest < 1e-3:
        return silence(0)
    audible = np.flatnonzero(loudness > _AUDIBLE * loudest)
    start = max(0, int(audible[0]) * _HOP - round(_BEFORE * SAMPLING_RATE))
    end = (int(audible[-1]) + 1) * _HOP + round(_AFTER * SAMPLING_RATE)
    piece = samples[start:end]
    level = np.sqrt(np.mean(loudness[loudness > _SPEECH * loudest] ** 2))
    gain = min(LEVEL / level, PEAK / np.abs(piece).max())
    return fade(piece * np.float32(gain), _FADE_IN, _FADE_OUT)


def fade(samples: Samples, fade_in: float, fade_out: float) -> Samples:
    """A copy that rises from zero and falls back to zero, in so many seconds."""
    faded = samples.copy()
    rise, fall = (min(len(faded), round(seconds * SAMPLING_RATE)) for seconds in (fade_in, fade_out))
    faded[:rise] *= _ramp(rise)
    faded[len(faded) - fall :] *= _ramp(fall)[::-1]
    return faded


def _ramp(length: int) -> Samples:
    """A quarter of a cosine's period: 0 to 1, smooth at both ends."""
    return np.asarray(0.5 - 0.5 * np.cos(np.linspace(0, np.pi, length)), np.float32)


def _loudness(samples: Samples) -> npt.NDArray[np.float32]:
    """Root mean square of each frame of _HOP samples; the last one may be shorter and is filled with zeros."""
    frames = np.pad(samples, (0, -len(samples) % _HOP)).reshape(-1, _HOP)
    return np.asarray(np.sqrt(np.mean(frames**2, axis=1)), np.float32)
