"""Opus in Ogg (RFC 7845). Knows nothing of other formats."""

from __future__ import annotations

from higgs_server.audio.encode import Encoder
from higgs_server.audio.muxed import Muxed

_PAGE = 20_000
"""Microseconds: a page for each packet. The muxer keeps one page back, to mark the last as the end."""


def encoder(*, streamed: bool) -> Encoder:
    """24 kHz is one of Opus's own rates; decoders give 48 kHz. Pre-skip and the last page's position make the decoded
    sound exactly as long as what was fed."""
    return Muxed(
        "ogg",
        "libopus",
        streamed=streamed,
        bit_rate=48_000,
        container_options={"page_duration": str(_PAGE)} if streamed else {},
        codec_options={"application": "audio", "frame_duration": "20"},
    )
