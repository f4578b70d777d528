"""What an encoder is. Knows no format (`encoders.py` has the table) and nothing of HTTP."""

from __future__ import annotations

from typing import Protocol, Self

from higgs_server.types import Samples


class Encoder(Protocol):
    """Samples in, the bytes of one file out, in order. One encoder for one utterance; calls must not overlap.

    An encoder made with `streamed=True` gives bytes as soon as its codec has them and never goes back. Made with
    `streamed=False` it may keep everything until `finish`, so that headers can say how long the sound is.
    """

    def feed(self, samples: Samples) -> bytes:
        """float32 [n] -> what can be sent now, possibly nothing."""

    def finish(self) -> bytes:
        """The rest: all that the codec still held. Nothing may be fed afterwards."""

    def close(self) -> None:
        """Frees what the encoder holds, finished or abandoned. Idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
