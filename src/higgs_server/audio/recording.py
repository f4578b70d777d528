"""A recording as somebody's voice: what is wrong with it, and how it is kept. Samples in, samples out.

The measures are simple ones, made for a clip of one person speaking. They cannot hear music, echo or a second voice.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from higgs_server.types import SAMPLING_RATE, Problem, Samples

FRAME = SAMPLING_RATE // 50
"""Samples of 20 ms: as short as speech holds still, long enough for one period of the deepest voice."""
SHORTEST, LONGEST = 2.0, 30.0
"""Seconds. Two seconds are about five words, fewer do not have most of a language's sounds in them. Thirty seconds are
750 positions of the model's context in every request, and more of the same voice does not make it any more alike."""
SILENT, QUIET = -60.0, -45.0
"""dBFS of the loudest frames, which is -16 to -22 in clips that were made with care. A voice at -45 has no more than 35
dB between itself and the last of 16 bits when it speaks softly, and what is heard at -60 is the recorder."""
MIN_SNR = 15.0
"""dB from the quietest tenth of the frames to the loudest. Speech has gaps between its words: there are 22 to 43 dB in
the voices that ship, 22 to 25 in LibriVox's readers; white noise 15 dB under them leaves 18, 10 dB under them 14. Noise
alone has 1. The model takes what it hears for a part of the voice."""
MOST_CLIPPED = 0.012
"""Of the samples, above 0.85 times what only one in a thousand is above. At most 0.007 in speech that is whole; at
least 0.02 where it was cut off at a third of its height, also when it went through mp3 or Opus afterwards."""
LEAST_SPEECH = 0.35
"""Of the time between the first word and the last. Read aloud it is 0.8 to 1."""
NARROW = -55.0
"""dB of what lies from 4.5 to 7.5 kHz, against everything below. A telephone carries nothing there (-130), the voices
that ship and LibriVox's have -15 to -30, the same at 11 kHz -21 to -28."""
WORDS_PER_SECOND = (0.4, 8.0)
"""Of speech, a Chinese character counted as a word. The voices that ship say 3 to 6."""

TARGET, PEAK = -20.0, 0.9
"""dBFS of speech as it is kept, where its peaks allow: the level of the voices that ship."""
MARGIN = 0.1
"""Seconds kept before the first sound and after the last one: consonants begin and end softly."""
_GATE = 35.0
"""dB below the loud parts at which sound counts as none."""


def check(samples: Samples, words: int | None = None) -> list[Problem]:
    """All that is wrong with a recording. `words` says how many its transcript has, None where it has none."""
    levels = _levels(samples)
    active = _active(levels)
    if not len(active):
        return [_SILENT]
    first, last = active[0], active[-1] + 1
    speech = samples[first * FRAME : last * FRAME]
    seconds = len(speech) / SAMPLING_RATE
    found = []
    if seconds < SHORTEST:
        found.append(_too_short(seconds))
    if seconds > LONGEST:
        found.append(_too_long(seconds))
    if _loud(levels) < QUIET:
        found.append(_QUIET)
    # In less than a second there may be but one sound, and no telling how high the others are.
    if seconds > 1 and _clipped(speech) > MOST_CLIPPED:
        found.append(_CLIPPED)
    # Frames of nothing at all are no room that could be heard: somebody has cut them out.
    heard = levels[levels > -90]
    if np.percentile(heard, 90) - np.percentile(heard, 10) < MIN_SNR:
        found.append(_NOISY)
    if len(active) / (last - first) < LEAST_SPEECH:
        found.append(_PAUSES)
    if _treble(speech) < NARROW:
        found.append(_NARROW)
    rate = (words or 0) * SAMPLING_RATE / (len(active) * FRAME)
    if words is not None and not WORDS_PER_SECOND[0] <= rate <= WORDS_PER_SECOND[1]:
        found.append(_words(words, seconds))
    return found


def tidy(samples: Samples) -> Samples:
    """Without the silence around it, at the level of speech."""
    levels = _levels(samples)
    active = _active(levels)
    if not len(active):
        return samples
    margin = int(MARGIN * SAMPLING_RATE)
    kept = samples[max(0, active[0] * FRAME - margin) : (active[-1] + 1) * FRAME + margin]
    power = np.mean(10 ** (levels[active] / 10))
    gain = min(10 ** (TARGET / 20) / np.sqrt(power), PEAK / float(np.abs(kept).max()))
    tidied: Samples = (kept * gain).astype(np.float32)
    return tidied


_SILENT = Problem(
    "silent", "There is nothing to hear.", "Check the microphone and record again.",
    "录音中听不到声音。", "请检查麦克风后重新录制。",
)  # fmt: skip
_QUIET = Problem(
    "too_quiet", "The voice is very quiet.", "Go nearer to the microphone, or raise its level.",
    "声音太小。", "请靠近麦克风或调高录音音量。",
)  # fmt: skip
_CLIPPED = Problem(
    "clipped", "The recording is too loud, cut off at the top.",
    "Lower the level of the microphone and record again.",
    "录音过载失真。", "请调低录音音量后重新录制。",
)  # fmt: skip
_NOISY = Problem(
    "noisy", "There is much noise beside the voice.", "Record in a quiet room, without a fan and without music.",
    "背景噪声太大。", "请在安静的环境中录制，不要有风扇声或音乐。",
)  # fmt: skip
_PAUSES = Problem(
    "mostly_silence", "More than half of the recording is silence.", "Cut out the pauses.",
    "录音中大部分是静音。", "请剪掉停顿。",
)  # fmt: skip
_NARROW = Problem(
    "narrow_band", "It sounds like a telephone: nothing is there above 4 kHz.",
    "Use a recording made with 16 kHz or more.",
    "录音像电话音质，4 kHz 以上没有声音。", "请使用 16 kHz 或更高采样率的录音。",
)  # fmt: skip


def _too_short(seconds: float) -> Problem:
    return Problem(
        "too_short", f"There are only {seconds:.1f} seconds of sound.", "Record 5 to 20 seconds.",
        f"有声部分只有 {seconds:.1f} 秒。", "请录制 5 至 20 秒。",
    )  # fmt: skip


def _too_long(seconds: float) -> Problem:
    return Problem(
        "too_long", f"There are {seconds:.1f} seconds of sound.", f"Keep the best 5 to 20, at most {LONGEST:g}.",
        f"录音长达 {seconds:.1f} 秒。", f"请保留最好的 5 至 20 秒，最多 {LONGEST:g} 秒。",
    )  # fmt: skip


def _words(words: int, seconds: float) -> Problem:
    return Problem(
        "transcript_mismatch", f"The transcript has {words} words, the recording {seconds:.1f} seconds.",
        "Write down exactly what is said, or leave the transcript out.",
        f"文本有 {words} 个词，而录音为 {seconds:.1f} 秒。", "请写下录音中的原话，或不填文本。",
    )  # fmt: skip


def _levels(samples: Samples) -> npt.NDArray[np.float64]:
    """dBFS of each whole frame."""
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME).astype(np.float64)
    levels: npt.NDArray[np.float64] = 10 * np.log10(np.mean(frames**2, axis=1) + 1e-12)
    return levels


def _active(levels: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Which frames have the voice in them, none in silence."""
    loud = _loud(levels)
    return np.flatnonzero(levels > loud - _GATE) if loud >= SILENT else np.zeros(0, np.int64)


def _loud(levels: npt.NDArray[np.float64]) -> float:
    """What the loudest fifth of a second reaches: more than a click, and no matter how much silence is around it."""
    return float(np.sort(levels)[-10:][0]) if len(levels) else -np.inf


def _clipped(speech: Samples) -> float:
    size = np.abs(speech)
    return float(np.mean(size > 0.85 * np.percentile(size, 99.9)))


def _treble(speech: Samples) -> float:
    size = 2048
    frames = speech[: len(speech) // size * size].reshape(-1, size).astype(np.float64)
    if not len(frames):
        return 0.0
    power = np.mean(np.abs(np.fft.rfft(frames * np.hanning(size))) ** 2, axis=0)
    hertz = np.fft.rfftfreq(size, 1 / SAMPLING_RATE)
    high, low = power[(hertz > 4500) & (hertz < 7500)].sum(), power[hertz < 4500].sum()
    return float(10 * np.log10((high + 1e-12) / (low + 1e-12)))
