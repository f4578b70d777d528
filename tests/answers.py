"""Reading what a server answers, its native endpoints above all."""

from __future__ import annotations

import base64
import io
import json
import socket
import wave
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt


def rest_of(raw: socket.socket) -> bytes:
    """All that comes until the connection ends."""
    found = b""
    while piece := raw.recv(65_536):
        found += piece
    return found


def wav_samples(data: bytes) -> npt.NDArray[np.int16]:
    """The samples of a 24 kHz mono 16-bit WAV whose sizes are true."""
    assert data[:4] == b"RIFF"
    assert int.from_bytes(data[4:8], "little") == len(data) - 8
    with wave.open(io.BytesIO(data)) as sound:
        assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (1, 2, 24_000)
        samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
    assert len(samples) == int.from_bytes(data[40:44], "little") // 2
    return samples


def generated_samples(answer: dict[str, Any]) -> npt.NDArray[np.int16]:
    """The samples of a `/generate` answer."""
    return wav_samples(base64.b64decode(answer["audio_base64"]))


def events(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The events of `/generate-stream`; `{"type": "[DONE]"}` for the end mark."""
    for line in lines:
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            yield {"type": "[DONE]"} if data == "[DONE]" else json.loads(data)


def streamed_samples(found: Iterable[dict[str, Any]]) -> npt.NDArray[np.int16]:
    """The samples of all `audio` events, in order."""
    pieces = [np.frombuffer(base64.b64decode(e["audio_base64"]), "<i2") for e in found if e["type"] == "audio"]
    return np.concatenate(pieces) if pieces else np.zeros(0, np.int16)
