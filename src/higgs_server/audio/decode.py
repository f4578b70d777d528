"""Bytes of any common audio format to samples, by PyAV. Uploads come through here, so nothing is trusted.

The container is told by its first bytes and opened as exactly that: no probing, hence no playlist or script demuxer
that would open other files or hosts.
"""

from __future__ import annotations

import io

import numpy as np

from higgs_server.types import SAMPLING_RATE, BadAudio, Clip, Samples, SpeechError, TooLarge

_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"RIFF", "wav"),
    (0, b"RF64", "wav"),
    (0, b"fLaC", "flac"),
    (0, b"OggS", "ogg"),
    (0, b"ID3", "mp3"),
    (4, b"ftyp", "mov"),
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (0, b"FORM", "aiff"),
    (0, b"caff", "caf"),
    (0, b".snd", "au"),
    (0, b"#!AMR", "amr"),
)


MAX_CLIP_SECONDS = 120.0
"""Longest clip of a voice folder; no model's context would hold more."""
MIN_RATE, MAX_RATE = 4_000, 768_000
"""Samples a second. Less is no speech, and a second of it could be made out of every few bytes."""


def container_of(data: bytes) -> str | None:
    """The demuxer for these bytes, None where they are no audio format that we take."""
    for offset, magic, name in _MAGIC:
        if data[offset : offset + len(magic)] == magic:
            return name
    # MPEG audio and ADTS both start with eleven or twelve set bits; ADTS has layer 0 in the next two.
    if len(data) > 2 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0:
        return "aac" if data[1] & 0xF6 == 0xF0 else "mp3"
    return None


def decode(data: bytes, *, max_seconds: float | None = None, param: str = "ref_audio_file") -> Clip:
    """Mono samples at SAMPLING_RATE. Channels are averaged.

    Raises BadAudio (415) for what is no sound and TooLarge (413) beyond `max_seconds`, before decoding the rest.
    """
    container = container_of(data)
    if not data or container is None:
        raise _bad(param, "it is empty" if not data else "its format is not known")
    import av
    import av.error

    try:
        pieces = _decode(data, container, max_seconds, param)
    except SpeechError:
        raise
    except (av.error.FFmpegError, ValueError, OverflowError, MemoryError) as error:
        raise _bad(param, f"it is damaged ({type(error).__name__})") from None
    samples = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    if not len(samples):
        raise _bad(param, "there is no sound in it")
    return Clip(np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0))


def duration(data: bytes) -> float | None:
    """Seconds by the header; None where it does not say, or where this is no sound."""
    container = container_of(data)
    if container is None:
        return None
    import av
    import av.error

    try:
        with av.open(io.BytesIO(data), "r", format=container) as source:
            stream = source.streams.audio[0] if source.streams.audio else None
            if stream is not None and stream.duration and stream.time_base:
                return float(stream.duration * stream.time_base)
            return source.duration / av.time_base if source.duration else None
    except (av.error.FFmpegError, ValueError, OverflowError, MemoryError):
        return None


def _decode(data: bytes, container: str, max_seconds: float | None, param: str) -> list[Samples]:
    import av

    most = None if max_seconds is None else int(max_seconds * SAMPLING_RATE)
    pieces: list[Samples] = []
    count = 0
    with av.open(io.BytesIO(data), "r", format=container) as source:
        if not source.streams.audio:
            raise _bad(param, "there is no sound in it")
        # Each channel by itself: FFmpeg's own way to mono adds floats up to more than there was.
        resampler = av.AudioResampler(format="flt", rate=SAMPLING_RATE)
        stream = source.streams.audio[0]
        # Where no decoder knows what is in it, a stream has no rate at all.
        rate = getattr(stream, "rate", 0)
        if not MIN_RATE <= rate <= MAX_RATE:
            raise _bad(param, f"{rate} samples a second are none of a recording")
        frames = source.decode(stream)
        ended = False
        while not ended:
            try:
                frame = next(frames)
            except StopIteration:
                frame, ended = None, True
            except av.error.InvalidDataError:
                # A damaged end does not cost what was good before it.
                if not count:
                    raise
                frame, ended = None, True
            for resampled in resampler.resample(frame):
                piece = resampled.to_ndarray().reshape(-1, resampled.layout.nb_channels).mean(axis=1)
                pieces.append(piece)
                count += len(piece)
            if most is not None and count > most:
                raise TooLarge(
                    f"{param}: the clip is longer than {max_seconds:g} seconds. Cut it; 5 to 20 seconds are best.",
                    f"参数 {param}：音频超过 {max_seconds:g} 秒，请剪短（5 至 20 秒效果最佳）。",
                    param=param,
                )
    return pieces


def _bad(param: str, why: str) -> BadAudio:
    return BadAudio(
        f"{param} cannot be used: {why}. Send wav, mp3, flac, ogg, opus, m4a, aac or webm.",
        f"参数 {param} 无法使用（{why}）。请上传 wav、mp3、flac、ogg、opus、m4a、aac 或 webm。",
        param=param,
    )
