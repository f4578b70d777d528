"""Samples to 16-bit PCM, the one place where floats become integers."""

from __future__ import annotations

import numpy as np

from higgs_server.audio.encode import Encoder
from higgs_server.types import Samples


def to_s16le(samples: Samples) -> bytes:
    """float32 [n] in [-1, 1] -> s16le bytes, rounded and clipped. No dither: the same samples give the same bytes."""
    data: bytes = np.clip(np.rint(samples * 32767.0), -32768, 32767).astype("<i2").tobytes()
    return data


class _Pcm(Encoder):
    def feed(self, samples: Samples) -> bytes:
        return to_s16le(samples)

    def finish(self) -> bytes:
        return b""

    def close(self) -> None:
        pass


def encoder(*, streamed: bool) -> Encoder:
    """Bare samples at SAMPLING_RATE: no header, so whole and streamed are the same bytes."""
    return _Pcm()
