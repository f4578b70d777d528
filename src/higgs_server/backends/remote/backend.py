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
from higgs_server.audio.decode import MAX_CLIP_SECONDS, MAX_RATE, MIN_RATE, decode
from higgs_server.backends import USE_HIGGS
from higgs_server.backends.remote.upstream import Told, Upstream
from higgs_server.engine.interface import BackendStats
from higgs_server.text.dialogue import check_speakers, parse_turns, speakers
from higgs_server.types import (
    DEFAULT_SCENE,
    FRAMES_PER_SECOND,
    SAMPLING_RATE,
    AudioChunk,
    Cancellation,
    Cancelled,
    Feature,
    FinishReason,
    GenerationFailed,
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
_SOUND_TAG = re.compile(r"<(SE(?:_[se])?)>.*?</\1>")
"""What `[laugh]` has become: Higgs Audio v2's own way of writing it, which other engines read out."""
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
                f"voices described in words (profile:{script.profile.name})", "音色描述", "ref_audio"
            )
        scene = script.scene
        if scene is not None and scene.name != DEFAULT_SCENE and Feature.SCENE not in self.info.features:
            raise self._unsupported(f"the scene {scene.name!r}", f"场景 {scene.name!r}", "scene_prompt")
        for voice in script.voices:
            if voice.name not in self._told.voices and Feature.VOICE_CLONING not in self.info.features:
                raise self._unsupported(
                    f"the voice {voice.name!r} (its voices: {', '.join(self._told.voices) or 'none'})",
                    f"音色 {voice.name!r}",
                    "ref_audio",
                )
        if not self._told.like_this_one and (sound := _SOUND_TAG.search(script.text)):
            raise self._unsupported(f"sounds ({sound[0]})", f"声音标签（{sound[0]}）", "text")
        check_speakers(script.text, len(script.voices))
        if not script.voices and len(speakers(script.text)) > 1 and not self._told.like_this_one:
            raise self._unsupported("several speakers without a voice for each", "未指定音色的多位说话人", "ref_audio")

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
        turns = parse_turns(text)
        if script.voices:
            return [(script.voices[turn.speaker or 0], turn.text) for turn in turns]
        whole = text if self._told.like_this_one else "\n".join(turn.text for turn in turns)
        return [(None, whole)] if whole else []

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
                raise self._failed(f"sent {kind} instead of raw PCM", f"返回了 {kind}，而不是 PCM")
            yield from self._samples(answer, cancellation)

    def _voice(self, voice: Voice | None) -> dict[str, Any]:
        anyone = {} if self._told.like_this_one else {"voice": self._told.any_voice}
        if voice is None:
            return anyone
        clip = voice.clip
        if clip is None and voice.recording is not None and Feature.VOICE_CLONING in self.info.features:
            clip = decode(voice.recording, max_seconds=MAX_CLIP_SECONDS, param="ref_audio")
        if clip is None:
            return {"voice": voice.name}
        sound = base64.b64encode(wav.encode(clip.samples, clip.sampling_rate)).decode()
        return {**anyone, "ref_audio": f"data:audio/wav;base64,{sound}", "ref_text": voice.transcript}

    def _samples(self, answer: HTTPResponse, cancellation: Cancellation) -> Iterator[Samples]:
        """s16le at the header's rate -> float32 at SAMPLING_RATE: what was sent, to the bit, where that is the rate."""
        said = answer.headers.get("x-sample-rate", "").strip() or SAMPLING_RATE
        try:
            rate = float(said)
        except ValueError:
            rate = 0.0
        if not MIN_RATE <= rate <= MAX_RATE:
            raise self._failed(f"sent sound of {said} samples a second", f"返回的采样率为 {said}")
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
        return self._failed("ended in the middle of the sound", "在生成过程中断开")

    def _failed(self, how: str, zh: str) -> SpeechError:
        """GenerationFailed in words of its own: no library's exception tells what went wrong."""
        return SpeechError(
            f"The engine at {self._upstream.address} {how}. Try again.",
            f"{self._upstream.address} 的引擎{zh}，请重试。",
            code=GenerationFailed.code,
        )

    def _unsupported(self, what: str, zh: str, param: str) -> Unsupported:
        return Unsupported(
            f"{self._told.model} at {self._upstream.address} cannot do this: {what}. Start `{USE_HIGGS}` for it.",
            f"{self._upstream.address} 的 {self._told.model} 不支持{zh}。请改用 `{USE_HIGGS}` 启动服务。",
            param=param,
        )
