"""The formats that speech can be sent in: one row each. Knows nothing of HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from higgs_server.audio import aac, flac, mp3, opus, pcm, wav
from higgs_server.audio.encode import Encoder
from higgs_server.types import InvalidRequest, Samples

ResponseFormat = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]
"""The names of FORMATS, as a request's field has them."""


class _Factory(Protocol):
    def __call__(self, *, streamed: bool) -> Encoder: ...


@dataclass(frozen=True, slots=True)
class Format:
    """One `response_format`: how it is announced, what its files are called, and what makes it."""

    content_type: str
    suffix: str
    """Of file names, with the dot."""
    encoder: _Factory


# Content types are IANA's, except audio/pcm, which is OpenAI's name for bare samples. Opus in Ogg is audio/ogg
# (RFC 7845, 9): audio/opus means bare RTP packets (RFC 7587). openai-python asks for application/octet-stream and
# looks at none of them.
FORMATS: dict[str, Format] = {
    "mp3": Format("audio/mpeg", ".mp3", mp3.encoder),
    "opus": Format("audio/ogg", ".opus", opus.encoder),
    "aac": Format("audio/aac", ".aac", aac.encoder),
    "flac": Format("audio/flac", ".flac", flac.encoder),
    "wav": Format("audio/wav", ".wav", wav.encoder),
    "pcm": Format("audio/pcm", ".pcm", pcm.encoder),
}


def new_encoder(name: str, *, streamed: bool) -> Encoder:
    """An encoder for one utterance; close it, or use it in a `with`. Raises InvalidRequest for an unknown format."""
    if name not in FORMATS:
        names = ", ".join(FORMATS)
        raise InvalidRequest(
            f"response_format: {name!r} is not known. Use one of {names}.",
            f"参数 response_format 无效：{name!r}。可选：{names}。",
            param="response_format",
        )
    return FORMATS[name].encoder(streamed=streamed)


def encode(name: str, samples: Samples) -> bytes:
    """A whole file: its header says how long it is, where the format can say so. Raises InvalidRequest."""
    with new_encoder(name, streamed=False) as encoder:
        return encoder.feed(samples) + encoder.finish()
