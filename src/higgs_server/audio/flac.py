"""FLAC, 16 bit, lossless: decodes to exactly the PCM of `pcm.py`. Knows nothing of other formats."""

from __future__ import annotations

from higgs_server.audio.encode import Encoder
from higgs_server.audio.muxed import Muxed


def encoder(*, streamed: bool) -> Encoder:
    """STREAMINFO of a streamed file says 0 samples and no MD5, "unknown" (RFC 9639, 8.2); a whole file has both."""
    # No room for tags: 8 KB of padding would be more than the first second of speech.
    return Muxed("flac", "flac", streamed=streamed, container_options={"metadata_header_padding": "0"})
