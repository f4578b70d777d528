"""The backend over an engine elsewhere: a script -> requests -> PCM as it comes -> AudioChunks.

One request for each piece of a script, or for each turn where the speakers have voices. Sent is what the speech APIs
have in common: raw PCM as it is made, and a clip as a data URL in `ref_audio` with `ref_text`.
"""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from typing import Any

import numpy as np
import soxr

from higgs_server.audio import wav
from higgs_server.audio.decode import decode
from higgs_server.backends.remote.upstream import Told, Upstream
from higgs_server.engine.interface import BackendStats
from higgs_server.settings import HIGGS
from higgs_server.text.dialogue import parse_turns, speakers
from higgs_server.types import (
    DEFAULT_SCENE,
    FRAMES_PER_SECOND,
    SAMPLING_RATE,
    AudioChunk,
    Cancellation,
    Cancelled,
    Feature,
    FinishReason,
    InvalidRequest,
    ModelInfo,
    Samples,
    Script,
    SpeechError,
    Unsupported,
    Voice,
)

_BLOCK = 2**16
_SAMPLES_PER_TOKEN = SAMPLING_RATE // FRAMES_PER_SECOND
_DELAY = 8
"""Rows of max_new_tokens that are not sound where codebooks lag (Higgs Audio)."""
_SOUND_TAGS = re.compile(r"<(SE(?:_[se])?)>.*?</\1>")
_PCM = ("audio/pcm", "audio/l16", "application/octet-stream")


class RemoteBackend:
    """`engine.interface.Backend` over one engine elsewhere."""

    def __init__(self, upstream: Upstream, info: ModelInfo, told: Told) -> None:
        self.info = info
        self._upstream = upstream
        self._told = told
        self._lock = threading.Lock()
        self._speaking: set[Cancellation] = set()
        self._closed = False

    def check(self, script: Script) -> None:
        """Raises Unsupported for what the engine cannot do. What else it refuses it says before its first sound."""
        if script.profile is not None:
            raise self._unsupported(
                f"voices described in words (profile:{script.profile.name})", "语音档案", "ref_audio"
            )
        scene = script.scene
        if scene is not None and scene.name != DEFAULT_SCENE and Feature.SCENE not in self.info.features:
            raise self._unsupported(f"the scene {scene.name!r}", f"场景 {scene.name!r}", "scene_prompt")
        for voice in script.voices:
            if voice.name not in self._told.voices and Feature.VOICE_CLONING not in self.info.features:
                raise self._unsupported(
                    f"the voice {voice.name!r} (its voices: {', '.join(self._told.voices) or 'none'})",
                    f"语音 {voice.name!r}",
                    "ref_audio",
                )
        highest = max(speakers(script.text), default=0)
        if script.voices and highest >= len(script.voices):
            raise InvalidRequest(
                f"The text has a [SPEAKER{highest}], but ref_audio names {len(script.voices)} voice(s).",
                f"文本中有 [SPEAKER{highest}]，但 ref_audio 只给出了 {len(script.voices)} 个语音。",
                param="ref_audio",
            )
        if not script.voices and len(speakers(script.text)) > 1 and not self._told.like_this_one:
            raise self._unsupported("several speakers without a voice for each", "未指定语音的多位说话人", "ref_audio")

    def speak(self, script: Script, cancellation: Cancellation) -> Iterator[AudioChunk]:
        """Sound as it comes. No reason for the end comes with it: `length` is what reached max_new_tokens."""
        cancellation.check()
        with self._lock:
            if self._closed:
                raise Cancelled
            self._speaking.add(cancellation)
        most = (script.sampling.max_new_tokens or self.info.max_new_tokens) * _SAMPLES_PER_TOKEN
        chunks = len(script.chunks)
        ended: FinishReason = "stop"
        try:
            for chunk, text in enumerate(script.chunks):
                left = most
                for voice, words in self._requests(script, text):
                    for samples in self._say(script, voice, words, cancellation) if left else ():
                        yield AudioChunk(samples[:left], chunk, chunks)
                        left = max(0, left - len(samples))
                        if not left:
                            break
                if left <= _DELAY * _SAMPLES_PER_TOKEN:
                    ended = "length"
            yield AudioChunk(np.zeros(0, np.float32), chunks - 1, chunks, finish_reason=ended)
        finally:
            with self._lock:
                self._speaking.discard(cancellation)

    def trouble(self) -> None:
        """Each request finds out for itself whether the other engine speaks."""

    def stats(self) -> BackendStats | None:
        """None: the engine runs elsewhere, and has metrics of its own."""
        return None

    def close(self) -> None:
        """Hangs up. Idempotent."""
        with self._lock:
            self._closed = True
            speaking = list(self._speaking)
        for cancellation in speaking:
            cancellation.cancel()

    def _requests(self, script: Script, text: str) -> list[tuple[Voice | None, str]]:
        """(voice, words) of each request for a piece of text."""
        if not script.voices:
            whole = text if self._told.like_this_one else "\n".join(turn.text for turn in parse_turns(text))
            requests: list[tuple[Voice | None, str]] = [(None, whole)]
        else:
            requests = [(script.voices[turn.speaker or 0], turn.text) for turn in parse_turns(text)]
        if not self._told.like_this_one:
            requests = [(voice, " ".join(_SOUND_TAGS.sub(" ", words).split())) for voice, words in requests]
        return [(voice, words) for voice, words in requests if words]

    def _say(self, script: Script, voice: Voice | None, words: str, cancellation: Cancellation) -> Iterator[Samples]:
        body = {
            # Here null switches something off; elsewhere it is no value.
            **script.sampling.model_dump(exclude_none=not self._told.like_this_one),
            "model": self._told.model,
            "input": words,
            "response_format": "pcm",
            "stream": True,
            "stream_format": "audio",
            **self._voice(voice),
        }
        if self._told.like_this_one:
            body |= {"scene_prompt": None, "chunk_method": None}
            if script.scene is not None:
                body["instructions"] = script.scene.content
        with self._upstream.post("/v1/audio/speech", body, cancellation) as answer:
            kind = answer.headers.get_content_type().lower()
            if kind not in _PCM:
                raise SpeechError(
                    f"The engine at {self._upstream.address} sent {kind} instead of raw PCM.",
                    f"{self._upstream.address} 的引擎返回了 {kind}，而不是 PCM。",
                    code="generation_failed",
                )
            yield from self._samples(answer, cancellation)

    def _voice(self, voice: Voice | None) -> dict[str, Any]:
        anyone = {} if self._told.like_this_one else {"voice": self._told.any_voice}
        if voice is None:
            return anyone
        clip = voice.clip
        if clip is None and voice.recording is not None and Feature.VOICE_CLONING in self.info.features:
            clip = decode(voice.recording, param="ref_audio")
        if clip is None:
            return {"voice": voice.name}
        sound = base64.b64encode(wav.encode(clip.samples, clip.sampling_rate)).decode()
        return {**anyone, "ref_audio": f"data:audio/wav;base64,{sound}", "ref_text": voice.transcript}

    def _samples(self, answer: HTTPResponse, cancellation: Cancellation) -> Iterator[Samples]:
        """s16le at the header's rate -> float32 at SAMPLING_RATE: what was sent, to the bit, where that is the rate."""
        rate = int(answer.headers.get("x-sample-rate") or SAMPLING_RATE)
        resample = None if rate == SAMPLING_RATE else soxr.ResampleStream(rate, SAMPLING_RATE, 1, dtype="float32")
        odd = b""
        while True:
            try:
                block = answer.read1(_BLOCK)
            except (OSError, HTTPException):
                cancellation.check()
                raise self._cut_off() from None
            cancellation.check()
            if not block and answer.length:
                raise self._cut_off()
            whole = len(odd + block) // 2 * 2
            data, odd = (odd + block)[:whole], (odd + block)[whole:]
            samples: Samples = np.maximum(np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32767.0), -1.0)
            if resample is not None:
                samples = resample.resample_chunk(samples, last=not block)
            if len(samples):
                yield samples
            if not block:
                return

    def _cut_off(self) -> SpeechError:
        return SpeechError(
            f"The engine at {self._upstream.address} ended in the middle of the sound. Try again.",
            f"{self._upstream.address} 的引擎在生成过程中断开，请重试。",
            code="generation_failed",
        )

    def _unsupported(self, what: str, zh: str, param: str) -> Unsupported:
        instead = f"python api_server.py --model-path {HIGGS}"
        return Unsupported(
            f"{self._told.model} at {self._upstream.address} cannot do this: {what}. Start `{instead}` for it.",
            f"{self._upstream.address} 的 {self._told.model} 不支持{zh}。请改用 `{instead}` 启动服务。",
            param=param,
        )
