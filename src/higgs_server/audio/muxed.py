"""The encoder that all compressed formats share: FFmpeg's codecs and containers by PyAV, fed piece by piece.

Knows no format by name.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from higgs_server.audio.encode import Encoder
from higgs_server.audio.pcm import to_s16le
from higgs_server.types import SAMPLING_RATE, Samples


class _Pipe:
    """A file that can only be written to: without `seek` no container tries to correct its header later."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._pieces.append(data)
        return len(data)

    def take(self) -> bytes:
        data = b"".join(self._pieces)
        self._pieces.clear()
        return data


class Muxed(Encoder):
    """A codec of FFmpeg's in a container of FFmpeg's. `rate` is the codec's; PyAV resamples where it is not ours.

    `container_options` and `codec_options` are FFmpeg's own (`ffmpeg -h muxer=NAME`, `ffmpeg -h encoder=NAME`).
    """

    def __init__(
        self,
        container: str,
        codec: str,
        *,
        streamed: bool,
        rate: int = SAMPLING_RATE,
        bit_rate: int | None = None,
        container_options: Mapping[str, str] | None = None,
        codec_options: Mapping[str, str] | None = None,
    ) -> None:
        import av

        self._pipe = _Pipe()
        self._whole = None if streamed else io.BytesIO()
        self._fed = 0
        self._container = av.open(
            self._pipe if self._whole is None else self._whole,
            "w",
            format=container,
            container_options=dict(container_options or {}),
        )
        stream = self._container.add_stream(codec, rate=rate, options=dict(codec_options or {}), layout="mono")
        assert isinstance(stream, av.AudioStream)
        self._stream = stream
        if bit_rate:
            stream.bit_rate = bit_rate
        self._container.start_encoding()

    def feed(self, samples: Samples) -> bytes:
        import av

        if len(samples):
            pcm = np.frombuffer(to_s16le(samples), np.int16)
            frame = av.AudioFrame.from_ndarray(pcm[np.newaxis], format="s16", layout="mono")
            frame.sample_rate = SAMPLING_RATE
            frame.time_base = Fraction(1, SAMPLING_RATE)
            frame.pts = self._fed
            self._fed += len(samples)
            self._container.mux(self._stream.encode(frame))
        return self._pipe.take()

    def finish(self) -> bytes:
        if self._fed:
            self._container.mux(self._stream.encode(None))
        # The trailer; the file is not closed by it.
        self._container.close()
        data = self._pipe.take() if self._whole is None else self._whole.getvalue()
        self.close()
        return data

    def close(self) -> None:
        # Breaks the ring of container and stream, which otherwise keeps the codec until Python looks for rings.
        self._container.close()
        if hasattr(self, "_stream"):
            del self._stream
        self._pipe.take()
