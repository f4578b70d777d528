"""AAC-LC in ADTS, frames with a header each. Knows nothing of other formats."""

from __future__ import annotations

from higgs_server.audio.encode import Encoder
from higgs_server.audio.muxed import Muxed

_RATE = 48_000
"""Twice ours: ADTS cannot say that the first frame is the codec's delay and the last is partly padding, and at this
rate both together stay under 45 ms."""


def encoder(*, streamed: bool) -> Encoder:
    """ADTS has no header of its own, so whole and streamed are the same bytes."""
    return Muxed(
        "adts",
        "aac",
        streamed=streamed,
        rate=_RATE,
        bit_rate=96_000,
        # The default search costs six times as much and is made for bit rates under 64 kb/s.
        codec_options={"aac_coder": "fast"},
    )
