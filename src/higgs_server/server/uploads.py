"""`/upload-audio`, `/upload-scene` and `/validate-ref-audio`, as servers of this kind have them.

A file's name is the name of the voice or the scene, and one of the same name is replaced. `/v1/audio/voices` is the API
that can do more.
"""

from __future__ import annotations

import asyncio
from pathlib import PurePosixPath

from fastapi import APIRouter, Request
from starlette.datastructures import FormData, UploadFile

from higgs_server.library.scenes import SceneLibrary
from higgs_server.library.voices import CLIP_SUFFIXES
from higgs_server.server.bodies import read_form, read_text_file
from higgs_server.server.errors import prefers_english, said
from higgs_server.server.native import scene_items, voice_items
from higgs_server.server.openapi import LIBRARY_ERRORS, form_body
from higgs_server.server.schemas import RefAudio, UploadedScene, UploadedVoice
from higgs_server.server.voices import Recordings, problem_items
from higgs_server.settings import Settings
from higgs_server.types import InvalidRequest, NotFound


def routes(settings: Settings, recordings: Recordings) -> APIRouter:
    """The router of the uploads."""
    router = APIRouter(tags=["uploads"], responses=LIBRARY_ERRORS)
    voices, scenes = recordings.library, SceneLibrary(settings.scene_prompts_dir)

    @router.post("/upload-audio", openapi_extra=form_body(
        {"audio_file": "NAME.wav, or another common format.", "text_file": "What is said in it."},
        {}, required=("audio_file",),
    ))  # fmt: skip
    async def upload_audio(request: Request, force: bool = False) -> UploadedVoice:
        """Keeps a recording as the voice that its file is named after."""
        async with read_form(request, 2, settings) as form:
            name, transcript = _name(form, "audio_file"), await read_text_file(form, "text_file")
            voice, problems = await recordings.keep(form, "audio_file", name, transcript, force=force, replace=True)
        found = await asyncio.to_thread(voice_items, voices)
        written = f"{voice.name}.txt" if voice.transcript else None
        file = f"{voice.name}.wav"
        return UploadedVoice(
            message=said(request.headers, f"Voice uploaded: {file}", f"音频文件上传成功: {file}"),
            uploaded_file=file,
            uploaded_txt_file=written,
            warnings=problem_items(problems, english=prefers_english(request.headers)),
            voices=found,
            count=len(found),
        )

    @router.post("/upload-scene", openapi_extra=form_body(
        {"scene_file": "NAME.txt with a description of the place."}, {}, required=("scene_file",)
    ))  # fmt: skip
    async def upload_scene(request: Request) -> UploadedScene:
        """Keeps a text as the scene that its file is named after."""
        async with read_form(request, 1, settings) as form:
            name, content = _name(form, "scene_file"), await read_text_file(form, "scene_file")
        scene = await asyncio.to_thread(scenes.put, name, content or "", "scene_file")
        found = await asyncio.to_thread(scene_items, scenes)
        file = f"{scene.name}.txt"
        return UploadedScene(
            message=said(request.headers, f"Scene uploaded: {file}", f"场景文件上传成功: {file}"),
            uploaded_file=file,
            content=scene.content,
            scenes=found,
            count=len(found),
        )

    @router.get("/validate-ref-audio")
    def validate_ref_audio(request: Request, ref_audio: str) -> RefAudio:
        """Whether `ref_audio` names a voice, with or without the suffix of its file."""
        path = PurePosixPath(ref_audio)
        name = ref_audio[: -len(path.suffix)] if path.suffix.lower() in CLIP_SUFFIXES else ref_audio
        try:
            file = str(voices.get(name).file)
        except NotFound:
            file = None
        return RefAudio(
            message=said(request.headers, "Checked", "校验完成"),
            exists=file is not None,
            resolved_file=file,
            search_dir=str(voices.folder if isinstance(voices.folder, str) else voices.folder.resolve()),
        )

    return router


def _name(form: FormData, param: str) -> str:
    """What a file of a form is called, without its suffix."""
    part = form.get(param)
    if not isinstance(part, UploadFile) or not part.filename:
        raise InvalidRequest(f"{param}: send a file with a name.", f"参数 {param}：请上传带文件名的文件。", param=param)
    stem, _, _ = part.filename.rpartition(".")
    return stem or part.filename
