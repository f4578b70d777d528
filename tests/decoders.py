"""Files back to samples by decoders that have nothing to do with the encoders: libsndfile, and a browser.

Nobody tells them what the bytes are, except for PCM, which has no header. libsndfile (with libFLAC, libopus and mpg123)
reads no AAC. The browser does; where a test is not about decoders, FFmpeg reads it faster.
"""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import soundfile
import soxr

RATE = 24_000
Samples = npt.NDArray[np.float32]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_BLOCK = 1 << 16


def decode(data: bytes, form: str) -> Samples:
    """Mono float32 at RATE."""
    if form == "pcm":
        return (np.frombuffer(data, "<i2") / 32767).astype(np.float32)
    sound, rate = _by_ffmpeg(data) if form == "aac" else _by_libsndfile(data)
    return np.asarray(soxr.resample(sound, rate, RATE) if rate != RATE else sound, np.float32)


class _OneWay(soundfile.SoundFile):
    """soundfile seeks to where it has just read to, and cannot at the end of a stream whose header says no length."""

    def seekable(self) -> bool:
        return False


def _by_libsndfile(data: bytes) -> tuple[Samples, int]:
    with _OneWay(io.BytesIO(data)) as file:
        blocks = [file.read(_BLOCK, dtype="float32")]
        while len(blocks[-1]):
            blocks.append(file.read(_BLOCK, dtype="float32"))
        assert file.channels == 1
        return np.concatenate(blocks), file.samplerate


def _by_ffmpeg(data: bytes) -> tuple[Samples, int]:
    with av.open(io.BytesIO(data)) as source:
        frames = [frame.to_ndarray()[0] for frame in source.decode(audio=0)]
        return np.concatenate([np.zeros(0, np.float32), *frames]), source.streams.audio[0].rate


@contextmanager
def browser_page() -> Iterator[Any]:
    """A blank page of the browser that this machine has."""
    from playwright.sync_api import sync_playwright

    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as browser,
    ):
        yield browser.new_page()


_DECODE = """
async base64 => {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const sound = await new OfflineAudioContext(1, 1, 24000).decodeAudioData(bytes.buffer);
  const samples = new Uint8Array(sound.getChannelData(0).buffer);
  let text = "";
  for (let at = 0; at < samples.length; at += 32768) text += String.fromCharCode(...samples.subarray(at, at + 32768));
  return btoa(text);
}
"""


def decode_in_browser(page: Any, data: bytes) -> Samples:
    """Mono float32 at RATE, as the Web Audio API decodes a file."""
    return np.frombuffer(base64.b64decode(page.evaluate(_DECODE, base64.b64encode(data).decode())), np.float32)


def adts_seconds(data: bytes) -> float:
    """What the headers of an AAC stream add up to (ISO 13818-7, 6.2); they must follow each other to the last byte."""
    rates = (96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350)
    at, seconds = 0, 0.0
    while at < len(data):
        assert data[at] == 0xFF
        assert data[at + 1] & 0xF6 == 0xF0
        seconds += 1_024 / rates[data[at + 2] >> 2 & 15]
        at += (data[at + 3] & 3) << 11 | data[at + 4] << 3 | data[at + 5] >> 5
    assert at == len(data)
    return seconds
