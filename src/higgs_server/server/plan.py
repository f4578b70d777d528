"""`POST /plan`: what `/generate` would speak, piece by piece, without speaking it.

Needs no loaded model: until there is one, text and names are checked, and the answer says that the model was not asked.
"""

from __future__ import annotations

from fastapi import APIRouter, Request

from higgs_server.library.profiles import ProfileLibrary
from higgs_server.library.scenes import SceneLibrary
from higgs_server.library.voices import VoiceLibrary
from higgs_server.server import streaming
from higgs_server.server.bodies import read_speech_request
from higgs_server.server.model import ServedModel
from higgs_server.server.openapi import ERRORS, json_body
from higgs_server.server.schemas import Plan, PlannedChunk
from higgs_server.settings import Settings
from higgs_server.synthesizer import draft
from higgs_server.text.dialogue import speakers
from higgs_server.text.duration import usual_seconds
from higgs_server.types import Script, SpeechRequest


def routes(settings: Settings, model: ServedModel) -> APIRouter:
    """The router of `/plan` over one served model, loaded or not."""
    router = APIRouter(tags=["native"])

    @router.post("/plan", responses=ERRORS, openapi_extra=json_body(SpeechRequest))
    async def plan(request: Request) -> Plan:
        """The text as the model reads it and the pieces it is generated in, each with its place in the text sent.

        A dry run of `/generate`: the same body, refused for the same reasons, and nothing is spoken.
        """
        speech_request = await read_speech_request(request, SpeechRequest, settings)
        return await streaming.plan(request, model, _planned, speech_request)

    def _planned(request: SpeechRequest) -> Plan:
        synthesizer = model.synthesizer
        script = synthesizer.plan(request) if synthesizer else _draft(request)
        chunks = [
            PlannedChunk(text=text, span=span, speakers=speakers(text), seconds=round(usual_seconds(text), 2))
            for text, span in zip(script.chunks, script.spans, strict=True)
        ]
        seconds = round(sum(chunk.seconds for chunk in chunks), 2)
        return Plan(text=script.text, chunks=chunks, seconds=seconds, checked=synthesizer is not None)

    def _draft(request: SpeechRequest) -> Script:
        folder = settings.voice_prompts_dir
        scenes = SceneLibrary(settings.scene_prompts_dir)
        return draft(request, VoiceLibrary(folder), scenes, ProfileLibrary(folder), settings.max_new_tokens)

    return router
