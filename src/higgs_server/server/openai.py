"""OpenAI's speech API over the same stream of AudioChunks: existing clients work with another base URL.

Errors under /v1 have OpenAI's envelope (errors.py). Fields that OpenAI does not have are ours and optional; fields that
nobody knows are ignored.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from higgs_server.audio.encoders import FORMATS, ResponseFormat, new_encoder
from higgs_server.audio.tempo import Tempo
from higgs_server.server.bodies import check_text_length, read_json, uploaded_voice
from higgs_server.server.errors import as_speech_error, openai_error_body
from higgs_server.server.model import ServedModel
from higgs_server.server.openapi import OPENAI_ERRORS, json_body
from higgs_server.server.streaming import (
    STREAM_HEADERS,
    ClientGone,
    SpokenResponse,
    event,
    first_then_rest,
    plan,
    speak,
)
from higgs_server.settings import Settings
from higgs_server.synthesizer import Synthesizer
from higgs_server.text.chunk import count_words
from higgs_server.types import (
    DEFAULT_SCENE,
    FRAMES_PER_SECOND,
    SAMPLING_RATE,
    AudioChunk,
    Feature,
    InvalidRequest,
    Samples,
    SamplingParams,
    Scene,
    Script,
    SpeechError,
    SpeechRequest,
    TooLarge,
    Voice,
)

OPENAI_VOICES = {
    "alloy": "en_woman",
    "ash": "en_man",
    "ballad": "chadwick",
    "coral": "belinda",
    "echo": "en_man",
    "fable": "chadwick",
    "onyx": "chadwick",
    "nova": "belinda",
    "sage": "mabel",
    "shimmer": "mabel",
    "verse": "en_man",
    "marin": "belinda",
    "cedar": "chadwick",
}
"""OpenAI's voices by the shipped ones that come nearest; one of library or model with such a name goes first."""
OPENAI_MODELS = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")
"""Names that clients insist on; whatever `model` says, the loaded model speaks."""

PAUSE_SECONDS = 0.2
"""What a text without a word sounds like."""
_ANY_WORD = "One."


class VoiceId(BaseModel):
    """A voice as an object."""

    id: str


class SpeechBody(SamplingParams):
    """The body of `POST /v1/audio/speech`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    input: Annotated[str, Field(description="What to say.")]
    model: Annotated[str | None, Field(description="Any name; the loaded model speaks.")] = None
    voice: Annotated[
        str | VoiceId | None, Field(description="A voice's name, one of OpenAI's, or `{\"id\": name}`.")
    ] = None
    instructions: Annotated[
        str | None, Field(description="Where and how it is said: the scene, on models that follow one.")
    ] = None
    response_format: ResponseFormat = "mp3"
    speed: Annotated[float, Field(ge=0.25, le=4.0, allow_inf_nan=False, description="The pitch stays.")] = 1.0
    stream_format: Annotated[
        Literal["audio", "sse"], Field(description="The sound itself, or events with it in base64.")
    ] = "audio"
    ref_audio: Annotated[
        str | None, Field(description="A clip to clone as a data URL (data:audio/wav;base64,…), instead of `voice`.")
    ] = None
    ref_text: Annotated[str | None, Field(description="What that clip says.")] = None
    scene_prompt: Annotated[str | None, Field(description="A scene's name, as in `/generate`.")] = DEFAULT_SCENE
    chunk_method: Literal["speaker", "word"] | None = "word"
    chunk_max_word_num: Annotated[int, Field(ge=1, le=10_000)] = 100
    chunk_max_num_turns: Annotated[int, Field(ge=1, le=1_000)] = 1
    generation_chunk_buffer_size: Annotated[int | None, Field(ge=0, le=100)] = None


def routes(settings: Settings, model: ServedModel) -> APIRouter:
    """The router of the OpenAI endpoints over one served model."""
    router = APIRouter(prefix="/v1", tags=["openai"], responses=OPENAI_ERRORS)

    @router.post(
        "/audio/speech",
        response_class=StreamingResponse,
        responses={
            200: {
                "content": {
                    kind: {} for kind in (*(form.content_type for form in FORMATS.values()), "text/event-stream")
                }
            }
        },
        openapi_extra=json_body(SpeechBody),
    )
    async def speech(request: Request) -> Response:
        """Speaks a text; the answer is the encoded sound, sent while it is made."""
        body = await read_json(request, SpeechBody)
        script = await plan(request, model, plan_speech, body, model.get(), settings)
        spoken = speak(model, script) if count_words(script.text) else _pause()
        pieces = await first_then_rest(spoken, request)
        sound = EncodedSpeech(pieces, body)
        headers = {**STREAM_HEADERS, "x-sample-rate": str(SAMPLING_RATE), "x-seed": str(script.sampling.seed)}
        if body.stream_format == "sse":
            return SpokenResponse(_events(sound, script), pieces, headers=headers, media_type="text/event-stream")
        media_type = FORMATS[body.response_format].content_type
        return SpokenResponse(sound.stream(), pieces, headers=headers, media_type=media_type)

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """The loaded model, and the names of OpenAI's that it answers to."""
        names = (settings.model_path, *OPENAI_MODELS)
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "higgs-audio-server"} for name in names]
        return {"object": "list", "data": data}

    @router.get("/audio/models")
    async def audio_models() -> dict[str, Any]:
        """The same for clients that look for speech models here."""
        return {"models": [{"id": name, "name": name} for name in (settings.model_path, *OPENAI_MODELS)]}

    return router


def plan_speech(body: SpeechBody, synthesizer: Synthesizer, settings: Settings) -> Script:
    """The script of a speech request (slow where it brings a clip: call it off the event loop)."""
    check_text_length(body.input, settings, "input")
    check_text_length(body.instructions or "", settings, "instructions")
    if not body.input.strip():
        raise InvalidRequest("input is empty: send something to say.", param="input")
    shared = SpeechRequest.model_fields.keys() & SpeechBody.model_fields.keys() - {"ref_audio"}
    fields = {name: getattr(body, name) for name in shared}
    clip = _clip(body.ref_audio, body.ref_text, settings) if body.ref_audio else None
    info = synthesizer.backend.info
    if clip is None:
        known = {voice.name for voice in synthesizer.voices.list()}
        fields["ref_audio"] = _voice_name(body.voice, known.union(info.extra.get("voices", ())))
    follows = Feature.SCENE in info.features
    scene = Scene("instructions", body.instructions.strip()) if body.instructions and follows else None
    # Clients try a key with a single full stop, and agents send what a language model writes, an emoji alone too.
    # OpenAI answers with sound; so do we, once all the rest of the request has been checked.
    wordless = not count_words(body.input)
    request = SpeechRequest(text=_ANY_WORD if wordless else body.input, **fields)
    try:
        script = synthesizer.plan(request, clip, scene)
    except SpeechError as error:
        if error.param == "ref_audio" and clip is None:
            error.param = "voice"
        raise
    return replace(script, chunks=(body.input.strip(),)) if wordless else script


def _voice_name(voice: str | VoiceId | None, known: set[str]) -> str | None:
    """What `ref_audio` calls the voice. OpenAI's names stand for shipped voices, where these are known."""
    name = voice.id if isinstance(voice, VoiceId) else voice
    alias = OPENAI_VOICES.get(name.lower()) if name else None
    return alias if name not in known and alias in known else name


async def _pause() -> AsyncIterator[AudioChunk]:
    silence = np.zeros(round(PAUSE_SECONDS * SAMPLING_RATE), np.float32)
    yield AudioChunk(silence, finish_reason="stop")


def _clip(url: str, transcript: str | None, settings: Settings) -> Voice:
    """The clip of a data URL (RFC 2397). No other URL is opened."""
    head, comma, data = url.partition(",")
    if not (head.startswith("data:") and head.endswith(";base64") and comma):
        raise InvalidRequest("ref_audio: send the clip as a data URL, data:audio/wav;base64,DATA.", param="ref_audio")
    try:
        clip = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest("ref_audio: not valid base64.", param="ref_audio") from None
    if len(clip) > settings.max_upload_mb * 2**20:
        raise TooLarge(f"ref_audio is larger than {settings.max_upload_mb} MB.", param="ref_audio")
    return uploaded_voice(clip, transcript, settings, "ref_audio")


class EncodedSpeech:
    """An utterance on its way to the bytes of one format. `seconds` is what has been spoken so far."""

    def __init__(self, pieces: AsyncIterator[AudioChunk], body: SpeechBody) -> None:
        self._pieces = pieces
        self._encoder = new_encoder(body.response_format, streamed=True)
        self._tempo = Tempo(body.speed)
        self._encoding = threading.Lock()
        self.seconds = 0.0

    async def stream(self) -> AsyncIterator[bytes]:
        """Bytes as soon as there are some. An error cuts the stream: a short sound is never taken for a whole one."""
        try:
            async for piece in self._pieces:
                self.seconds += len(piece.samples) / SAMPLING_RATE
                if data := await asyncio.to_thread(self._feed, piece.samples):
                    yield data
            if data := await asyncio.to_thread(self._finish):
                yield data
        finally:
            # Where the client went away, a thread may be encoding still: closing waits for it, but not on the loop.
            asyncio.get_running_loop().run_in_executor(None, self._close)
            await self._pieces.aclose()  # type: ignore[attr-defined]

    def _feed(self, samples: Samples) -> bytes:
        with self._encoding:
            return self._encoder.feed(self._tempo.feed(samples))

    def _finish(self) -> bytes:
        with self._encoding:
            return self._encoder.feed(self._tempo.finish()) + self._encoder.finish()

    def _close(self) -> None:
        with self._encoding:
            self._encoder.close()


async def _events(sound: EncodedSpeech, script: Script) -> AsyncIterator[bytes]:
    try:
        async with aclosing(sound.stream()) as stream:  # type: ignore[type-var]
            async for data in stream:
                yield event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})
        taken, made = count_words(script.text), round(sound.seconds * FRAMES_PER_SECOND)
        usage = {"input_tokens": taken, "output_tokens": made, "total_tokens": taken + made}
        yield event({"type": "speech.audio.done", "usage": usage})
    except ClientGone:
        return
    except Exception as error:
        yield event({"type": "error", **openai_error_body(as_speech_error(error))})
