"""MP3: LAME at a constant bit rate. Knows nothing of other formats."""

from __future__ import annotations

from higgs_server.audio.encode import Encoder
from higgs_server.audio.muxed import Muxed

_RATE = 48_000
"""Twice ours. A frame then lasts 24 ms and the codec's own delay 23 ms instead of 46 ms; a stream cannot say how much
silence that puts around the speech. MPEG-1 rates are also the ones that every player has."""


def encoder(*, streamed: bool) -> Encoder:
    """Streamed without the Xing frame, whose length and seek table would be wrong and which some players believe.

    A whole file has it, so that decoders cut the codec's delay off.
    """
    return Muxed(
        "mp3",
        "libmp3lame",
        streamed=streamed,
        rate=_RATE,
        bit_rate=96_000,
        container_options={"write_xing": "0" if streamed else "1", "id3v2_version": "0"},
        # No bit reservoir: no frame waits for the next ones, and a player can join anywhere.
        codec_options={"reservoir": "0"},
    )
