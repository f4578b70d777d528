"""The native endpoints: `/info /voices /scenes /generate /generate-stream /generate-upload`.

Each only translates between HTTP and the one stream of AudioChunks.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from higgs_server import __version__
from higgs_server.audio.encoders import FORMATS, encode
from higgs_server.audio.pcm import to_s16le
from higgs_server.library.scenes import SceneLibrary
from higgs_server.library.voices import VoiceLibrary
from higgs_server.server.bodies import read_speech_request, read_upload, uploaded_voice
from higgs_server.server.errors import as_speech_error, error_body, said
from higgs_server.server.model import ServedModel
from higgs_server.server.openapi import ERRORS, generated_answer, json_body, upload_body
from higgs_server.server.schemas import GenerateBody, Info, SceneItem, SceneList, Spoken, VoiceItem, VoiceList
from higgs_server.server.streaming import (
    STREAM_HEADERS,
    ClientGone,
    SpokenResponse,
    event,
    first_then_rest,
    plan,
    speak,
    speak_whole,
)
from higgs_server.settings import Settings
from higgs_server.synthesizer import join
from higgs_server.types import SAMPLING_RATE, AudioChunk, Script, Speech, SpeechRequest


def routes(settings: Settings, model: ServedModel) -> APIRouter:
    """The router of the native API over one served model."""
    router = APIRouter(tags=["native"], responses=ERRORS)

    @router.get("/info")
    async def info() -> Info:
        """The model and what it can do. Never loads anything."""
        loaded = model.synthesizer.backend.info if model.synthesizer else None
        return Info(
            model_name=settings.model_path,
            device=loaded.device if loaded else settings.device,
            is_loaded=loaded is not None,
            max_new_tokens=loaded.max_new_tokens if loaded else settings.max_new_tokens,
            supported_features=sorted(loaded.features) if loaded else [],
            status=model.state.status,
            version=__version__,
            sampling_rate=SAMPLING_RATE,
            dtype=loaded.dtype if loaded else None,
            note=loaded.note if loaded else None,
            queue=model.admission.state,
        )

    @router.get("/voices")
    def voices() -> VoiceList:
        """The voices that `ref_audio` can name."""
        found = voice_items(VoiceLibrary(settings.voice_prompts_dir))
        return VoiceList(voices=found, count=len(found))

    @router.get("/scenes")
    def scenes() -> SceneList:
        """The scenes that `scene_prompt` can name."""
        found = scene_items(SceneLibrary(settings.scene_prompts_dir))
        return SceneList(scenes=found, count=len(found))

    @router.post("/generate", responses=generated_answer(), openapi_extra=json_body(GenerateBody))
    async def generate(request: Request) -> Response:
        """Speaks a text. The answer is JSON with a whole file in base64, or by `Accept: audio/*` the file itself."""
        body = await read_speech_request(request, GenerateBody, settings)
        script = await plan(request, model, model.get().plan, body)
        return await _answer(request, model, script, body)

    @router.post("/generate-upload", responses=generated_answer(), openapi_extra=upload_body())
    async def generate_upload(request: Request) -> Response:
        """Speaks a text with the voice of an uploaded clip, and answers as `/generate` does."""
        form, data, transcript = await read_upload(request, settings)
        synthesizer = model.get()

        def plan_upload() -> Script:
            voice = None if data is None else uploaded_voice(data, transcript, settings)
            return synthesizer.plan(form, voice)

        script = await plan(request, model, plan_upload)
        return await _answer(request, model, script, form)

    @router.post(
        "/generate-stream",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}}},
        openapi_extra=json_body(SpeechRequest),
    )
    async def generate_stream(request: Request) -> Response:
        """Speaks a text and sends the PCM as it is made: server-sent events `progress`, `audio`, `done`, `error`."""
        speech_request = await read_speech_request(request, SpeechRequest, settings)
        script = await plan(request, model, model.get().plan, speech_request)
        pieces = await first_then_rest(speak(model, script), request)
        return SpokenResponse(
            _events(request, script, pieces), pieces, media_type="text/event-stream", headers=STREAM_HEADERS
        )

    return router


def voice_items(library: VoiceLibrary) -> list[VoiceItem]:
    """The voices of a library as `/voices` lists them."""
    return [
        VoiceItem(name=voice.name, file=str(voice.file), type=voice.file.suffix[1:].lower())
        for voice in library.list()
        if voice.file
    ]


def scene_items(library: SceneLibrary) -> list[SceneItem]:
    """The scenes of a library as `/scenes` lists them."""
    return [SceneItem(name=scene.name, content=scene.content, file=str(scene.file)) for scene in library.list()]


async def _answer(request: Request, model: ServedModel, script: Script, body: GenerateBody) -> Response:
    pieces = await speak_whole(request, model, script)
    return await asyncio.to_thread(_whole, request, join(script, pieces), body)


def _whole(request: Request, speech: Speech, body: GenerateBody) -> Response:
    accepted = [item.partition(";")[0].strip() for item in request.headers.get("accept", "").lower().split(",")]
    name: str = body.response_format
    if "response_format" not in body.model_fields_set:
        # Accept alone says which format, too.
        name = next((known for known, form in FORMATS.items() if form.content_type in accepted), name)
    data = encode(name, speech.samples)
    if any(kind.startswith("audio/") for kind in accepted):
        headers = {"x-seed": str(speech.seed), "x-finish-reason": speech.finish_reason}
        return Response(data, media_type=FORMATS[name].content_type, headers=headers)
    spoken = _spoken(request, speech).model_dump()
    return JSONResponse({**spoken, "format": name, "audio_base64": base64.b64encode(data).decode()})


def _spoken(request: Request, speech: Speech) -> Spoken:
    return Spoken(
        message=said(request.headers, "Audio generated", "音频生成成功"),
        sampling_rate=speech.sampling_rate,
        duration=speech.duration,
        generated_text=speech.generated_text,
        seed=speech.seed,
        finish_reason=speech.finish_reason,
    )


async def _events(request: Request, script: Script, pieces: AsyncIterator[AudioChunk]) -> AsyncIterator[bytes]:
    heard: list[AudioChunk] = []
    seconds = 0.0
    index = 0
    try:
        async for piece in pieces:
            heard.append(piece)
            if len(piece.samples):
                audio = base64.b64encode(to_s16le(piece.samples)).decode()
                yield event({"type": "audio", "index": index, "audio_base64": audio, "sampling_rate": SAMPLING_RATE})
                index += 1
            seconds += len(piece.samples) / SAMPLING_RATE
            # Chunks count from 1 for people.
            yield event(
                {"type": "progress", "chunk": piece.chunk + 1, "chunks": piece.chunks, "seconds": round(seconds, 3)}
            )
        yield event({"type": "done", **_spoken(request, join(script, heard)).model_dump()})
    except ClientGone:
        return
    except Exception as error:
        yield event({"type": "error", **error_body(as_speech_error(error), request.headers)})
    yield b"data: [DONE]\n\n"
