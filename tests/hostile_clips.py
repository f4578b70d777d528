"""Recordings that nobody means well with, and a few that only look so: bytes by name, each made in a moment."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np

from higgs_server.audio import wav
from higgs_server.audio.decode import decode
from higgs_server.audio.encoders import new_encoder

ROOT = Path(__file__).resolve().parents[1]
HOURS = 3


@cache
def speech() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Some seconds that pass every check."""
    return decode((ROOT / "examples/voice_prompts/belinda.wav").read_bytes()).samples


@cache
def encoded(form: str) -> bytes:
    encoder = new_encoder(form, streamed=False)  # type: ignore[arg-type]
    return encoder.feed(speech()) + encoder.finish()


def riff(data: bytes, *, tag: int = 1, channels: int = 1, rate: int = 24_000, bits: int = 16, size: int = -1) -> bytes:
    """A WAV whose header says whatever it is told to."""
    block = max(1, channels * bits // 8) & 0xFFFF
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, tag, channels, rate, rate * block & 0xFFFFFFFF, block, bits)
    return b"RIFF\x24\0\0\0WAVE" + form + b"data" + struct.pack("<I", len(data) if size < 0 else size) + data


def floats(*values: float) -> bytes:
    """A WAV of 32-bit floats: the speech, with every hundredth sample replaced."""
    samples = np.tile(speech(), 1).astype("<f4")
    for place, value in enumerate(values):
        samples[place::100] = value
    return riff(samples.tobytes(), tag=3, bits=32)


def container(form: str, audio: str | None, video: bool = False, rate: int = 24_000) -> bytes:
    """The speech by PyAV, in a container, with or without pictures."""
    out = io.BytesIO()
    with av.open(out, "w", format=form) as sink:
        stream = sink.add_stream(audio, rate=rate) if audio else None
        if video:
            picture = sink.add_stream("mpeg4", rate=5)
            picture.width, picture.height, picture.pix_fmt = 64, 64, "yuv420p"  # type: ignore[attr-defined]
            for _ in range(10):
                frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")
                sink.mux(picture.encode(frame))  # type: ignore[attr-defined]
            sink.mux(picture.encode())  # type: ignore[attr-defined]
        if stream is not None:
            frame = av.AudioFrame.from_ndarray(speech()[None], "fltp", "mono")
            frame.sample_rate = 24_000
            for resampled in av.AudioResampler(stream.format, "mono", rate).resample(frame):  # type: ignore[attr-defined]
                sink.mux(stream.encode(resampled))  # type: ignore[attr-defined]
            sink.mux(stream.encode())  # type: ignore[attr-defined]
    return out.getvalue()


def hours_of_flac() -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="flac") as sink:
        stream = sink.add_stream("flac", rate=8_000)
        stream.options = {"frame_size": "65535"}
        silence = np.zeros((1, 8_000 * 600), np.int16)
        for _ in range(HOURS * 6):
            frame = av.AudioFrame.from_ndarray(silence, "s16", "mono")
            frame.sample_rate = 8_000
            sink.mux(stream.encode(frame))  # type: ignore[attr-defined]
        sink.mux(stream.encode())  # type: ignore[attr-defined]
    return out.getvalue()


def hours_of_mp3() -> bytes:
    """The frames of a second, again and again: they stand alone."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp3", options={"write_xing": "0", "id3v2_version": "0"}) as sink:
        stream = sink.add_stream("libmp3lame", rate=24_000, bit_rate=8_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 24_000), np.float32), "fltp", "mono")
        frame.sample_rate = 24_000
        sink.mux(stream.encode(frame))  # type: ignore[attr-defined]
        sink.mux(stream.encode())  # type: ignore[attr-defined]
    return out.getvalue() * (3600 * HOURS)


def chained_opus() -> bytes:
    """Hours of Ogg streams, one after another."""
    encoder = new_encoder("opus", streamed=False)
    minute = encoder.feed(np.zeros(24_000 * 60, np.float32)) + encoder.finish()
    return minute * 180


def eight_channels() -> bytes:
    wide = np.repeat(speech(), 4)
    return riff((np.repeat(wide[:, None], 8, 1) * 32767).astype("<i2").tobytes(), channels=8, rate=96_000)


def zip_bomb() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("clip.wav", bytes(50_000_000))
    return out.getvalue()


def id3(size: int) -> bytes:
    return b"ID3\x03\0\0" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + bytes(size)


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile:///etc/passwd\n#EXTINF:5,\nhttp://127.0.0.1:1/x.ts\n"
CONCAT = b"ffconcat version 1.0\nfile /etc/passwd\nfile 'http://127.0.0.1:1/x.wav'\n"

Made = Callable[[], bytes]
CLIPS: dict[str, tuple[Made, int, str]] = {
    # name: how it is made, the status, and the code of the error or of the only problem
    "empty": (lambda: b"", 415, "bad_audio"),
    "one byte": (lambda: b"R", 415, "bad_audio"),
    "noise for bytes": (lambda: b"x" + np.random.default_rng(1).bytes(100_000), 415, "bad_audio"),
    "zeros": (lambda: bytes(1_000_000), 415, "bad_audio"),
    "header only": (lambda: wav.encode(speech())[:44], 415, "bad_audio"),
    "half a header": (lambda: wav.encode(speech())[:21], 415, "bad_audio"),
    "truncated wav": (lambda: wav.encode(speech())[:150_000], 201, ""),
    "truncated mp3": (lambda: encoded("mp3")[:9_000], 422, "too_short"),
    "truncated flac": (lambda: encoded("flac")[:30_000], 422, "too_short"),
    "m4a without its index": (lambda: container("mp4", "aac")[:20_000], 415, "bad_audio"),
    "zip bomb": (zip_bomb, 415, "bad_audio"),
    "gzip": (lambda: gzip.compress(wav.encode(speech())), 415, "bad_audio"),
    "hours of silence in flac": (hours_of_flac, 413, "too_large"),
    "hours of silence in mp3": (hours_of_mp3, 413, "too_large"),
    "hours of opus streams": (chained_opus, 413, "too_large"),
    "video with sound": (lambda: container("mp4", "aac", video=True), 201, ""),
    "video without sound": (lambda: container("mp4", None, video=True), 415, "bad_audio"),
    "webm": (lambda: container("webm", "libopus", rate=48_000), 201, ""),
    "96 kHz in eight channels": (eight_channels, 201, ""),
    "one sample a second": (lambda: riff(bytes(4_000_000), rate=1), 415, "bad_audio"),
    "billions of samples a second": (lambda: riff(bytes(100_000), rate=2**31 - 1), 415, "bad_audio"),
    "no samples a second": (lambda: riff(bytes(100_000), rate=0), 415, "bad_audio"),
    "no channels": (lambda: riff(bytes(100_000), channels=0), 415, "bad_audio"),
    "65535 channels": (lambda: riff(bytes(1_000_000), channels=65_535), 415, "bad_audio"),
    "no bits": (lambda: riff(bytes(100_000), bits=0), 415, "bad_audio"),
    "said to be endless": (lambda: riff(wav.encode(speech())[44:], size=0xFFFFFFFF), 201, ""),
    "said to be short": (lambda: riff(wav.encode(speech())[44:], size=100), 422, "silent"),
    "not a number, all of it": (lambda: riff(np.full(96_000, np.nan, "<f4").tobytes(), tag=3, bits=32), 422, "silent"),
    "infinite, all of it": (lambda: riff(np.full(96_000, np.inf, "<f4").tobytes(), tag=3, bits=32), 422, "*"),
    "not a number here and there": (lambda: floats(np.nan), 201, ""),
    "infinite here and there": (lambda: floats(np.inf, -np.inf), 422, "*"),
    "as large as floats get": (lambda: floats(3e38, -3e38), 422, "*"),
    "20 MB of ID3 before the sound": (lambda: id3(20_000_000) + encoded("mp3"), 201, ""),
    "ID3 and nothing": (lambda: id3(1_000_000), 415, "bad_audio"),
    "playlist": (lambda: PLAYLIST, 415, "bad_audio"),
    "playlist after ID3": (lambda: id3(10) + PLAYLIST * 50, 415, "bad_audio"),
    "concat script": (lambda: CONCAT, 415, "bad_audio"),
    "concat script in a WAV": (lambda: b"RIFF\x24\0\0\0WAVE" + CONCAT, 415, "bad_audio"),
    "web page": (lambda: b"<html><script>alert(1)</script></html>", 415, "bad_audio"),
    "program": (lambda: b"#!/bin/sh\ntouch /tmp/pwned\n", 415, "bad_audio"),
    "endless EBML": (lambda: b"\x1aE\xdf\xa3" + b"\xff" * 100_000, 415, "bad_audio"),
    "endless MP4 box": (lambda: b"\0\0\0\x18ftypM4A " + b"\xff" * 100_000, 415, "bad_audio"),
    "endless FLAC tag": (lambda: b"fLaC\x04\xff\xff\xff" + b"\xff" * 100_000, 415, "bad_audio"),
    "sound and an archive": (lambda: wav.encode(speech()) + zip_bomb(), 201, ""),
    "document and sound": (lambda: b"%PDF-1.7\n" + wav.encode(speech()), 415, "bad_audio"),
    "26 MB": (lambda: wav.encode(speech()) + bytes(26 * 2**20), 413, "too_large"),
}

NAMES: dict[str, int] = {
    # name: the status
    "../../etc/passwd": 400,
    "/etc/passwd": 400,
    "..\\..\\windows": 400,
    "..": 400,
    ".hidden": 400,
    "a\0b": 400,
    "a\nb": 400,
    "\u202egnp.exe": 400,
    "a\u200bb": 400,
    "<script>alert(1)</script>": 400,
    "a,b": 400,
    "CON": 400,
    "name.": 400,
    "x" * 300: 400,
    "%2e%2e%2f": 400,
    "profile:x": 400,
    " ": 400,
    "$(touch pwned); `touch pwned`": 201,
    "'); DROP TABLE voices; --": 201,
    "{{7}} ${x} #x": 201,
    "小红 🎙": 201,
    "صوت": 201,
    "Zoe\u0308": 201,
}
