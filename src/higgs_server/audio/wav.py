"""WAV files: RIFF, format 1 (PCM), 16 bit, mono. Knows nothing of other containers."""

from __future__ import annotations

import struct

import numpy as np

from higgs_server.audio.encode import Encoder
from higgs_server.audio.pcm import to_s16le
from higgs_server.types import SAMPLING_RATE, Samples

UNKNOWN_SIZE = 0xFFFFFFFF
"""Both sizes of a WAV whose length is not known when its header is written (a stream)."""


def header(data_bytes: int | None, sampling_rate: int = SAMPLING_RATE) -> bytes:
    """The 44 bytes before the samples; None for a stream whose length nobody knows yet."""
    riff = UNKNOWN_SIZE if data_bytes is None else 36 + data_bytes
    data = UNKNOWN_SIZE if data_bytes is None else data_bytes
    block = 2
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF", riff, b"WAVE", b"fmt ", 16, 1, 1, sampling_rate, sampling_rate * block, block, 16, b"data", data,
    )  # fmt: skip


def encode(samples: Samples, sampling_rate: int = SAMPLING_RATE) -> bytes:
    """A whole WAV with true sizes."""
    data = to_s16le(samples)
    return header(len(data), sampling_rate) + data


class _Streamed(Encoder):
    """The header goes out with the first samples."""

    def __init__(self) -> None:
        self._header = header(None)

    def feed(self, samples: Samples) -> bytes:
        data, self._header = self._header + to_s16le(samples), b""
        return data

    def finish(self) -> bytes:
        return self.feed(np.zeros(0, np.float32))

    def close(self) -> None:
        pass


class _Whole(Encoder):
    """The header says how much follows, so everything waits for the end."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def feed(self, samples: Samples) -> bytes:
        self._pieces.append(to_s16le(samples))
        return b""

    def finish(self) -> bytes:
        data = b"".join(self._pieces)
        self.close()
        return header(len(data)) + data

    def close(self) -> None:
        self._pieces.clear()


def encoder(*, streamed: bool) -> Encoder:
    """Streamed with both sizes unknown; whole with true ones."""
    return _Streamed() if streamed else _Whole()
