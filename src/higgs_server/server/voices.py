"""`/v1/audio/voices`: listing, keeping, changing and removing the voices of the library.

Recordings are decoded, checked and written off the event loop, and few at a time, so that many uploads at once do not
fill the memory. Knows no model: whether it can clone a voice is said where the voice is used.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from fastapi import APIRouter, Request, Response
from starlette.datastructures import FormData

from higgs_server.audio import wav
from higgs_server.audio.decode import decode, duration
from higgs_server.audio.recording import check, tidy
from higgs_server.library.names import check_new_name
from higgs_server.library.voices import VoiceLibrary
from higgs_server.server.bodies import read_file, read_form, read_json, read_text
from higgs_server.server.errors import problem_body
from higgs_server.server.openapi import OPENAI_LIBRARY_ERRORS, form_body, json_body
from higgs_server.server.schemas import Deleted, LibraryVoice, LibraryVoices, NewVoice, ProblemItem, VoiceChange
from higgs_server.settings import Settings
from higgs_server.text.chunk import count_words
from higgs_server.text.language import written_language
from higgs_server.types import InvalidRequest, Problem, SpeechError, UnfitRecording, Voice

MOST_AT_ONCE = 2
"""Recordings that are read and decoded at the same time."""
MAX_SAMPLE_SECONDS = 600.0
"""Longest clip of a folder that is played or measured."""


def routes(settings: Settings, recordings: Recordings) -> APIRouter:
    """The router of the voice library."""
    router = APIRouter(prefix="/v1/audio/voices", tags=["voices"], responses=OPENAI_LIBRARY_ERRORS)
    library = recordings.library
    durations = Durations(library)

    def shown(voice: Voice) -> LibraryVoice:
        return LibraryVoice(
            id=voice.name,
            name=voice.name,
            language=written_language(voice.transcript or ""),
            duration=durations.of(voice),
            transcript=voice.transcript,
            read_only=voice.read_only,
        )

    @router.get("")
    def voices() -> LibraryVoices:
        """The voices of the library."""
        found = library.list()
        durations.keep_only(found)
        return LibraryVoices(voices=[shown(voice) for voice in found])

    @router.post("", status_code=201, openapi_extra=form_body(
        {"audio_sample": "5 to 20 seconds of one person speaking, in any common format."},
        {"name": "What the voice is called.", "ref_text": "What is said in the sample."},
        required=("name", "audio_sample"),
    ))  # fmt: skip
    async def create(request: Request, force: bool = False, replace: bool = False) -> NewVoice:
        """Keeps a recording as a voice. `force` keeps a poor one too, `replace` takes the place of one of that name."""
        async with read_form(request, 1, settings) as form:
            name, transcript = read_text(form, "name"), read_text(form, "ref_text")
            if name is None:
                raise InvalidRequest("name: say what the voice is called.", "参数 name：请给音色命名。", param="name")
            voice, problems = await recordings.keep(
                form, "audio_sample", name, transcript, force=force, replace=replace
            )
        voice_shown = await asyncio.to_thread(shown, voice)
        warnings = problem_items(problems, english=True)
        return NewVoice(**voice_shown.model_dump(), created_at=int(time.time()), warnings=warnings)

    @router.patch("/{name}", openapi_extra=json_body(VoiceChange))
    async def change(name: str, request: Request) -> LibraryVoice:
        """Another name, or another transcript."""
        body = await read_json(request, VoiceChange)
        words = (body.ref_text or "") if "ref_text" in body.model_fields_set else None
        if body.name is None and words is None:
            raise InvalidRequest("Send `name` or `ref_text`.", "请提供 name 或 ref_text。")
        return await asyncio.to_thread(lambda: shown(library.update(name, new_name=body.name, transcript=words)))

    @router.delete("/{name}")
    async def delete(name: str) -> Deleted:
        """Removes a voice. Who is speaking with it goes on."""
        return Deleted(id=(await asyncio.to_thread(library.delete, name)).name)

    @router.get("/{name}/sample", response_class=Response, responses={200: {"content": {"audio/wav": {}}}})
    async def sample(name: str, request: Request) -> Response:
        """The voice's clip, as a WAV for players."""
        voice = await asyncio.to_thread(library.get, name, "name")
        headers = {"etag": f'"{voice.version}"', "cache-control": "no-cache", "x-content-type-options": "nosniff"}
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(await recordings.as_wav(voice), 200, headers, "audio/wav")

    return router


def problem_items(problems: Sequence[Problem], *, english: bool) -> list[ProblemItem]:
    """Problems that were let pass, for an answer."""
    return [ProblemItem(**problem_body(problem, english=english)) for problem in problems]


class Recordings:
    """Recordings on their way into the library and out of it: one of these a server, whichever endpoint they take."""

    def __init__(self, library: VoiceLibrary, settings: Settings) -> None:
        self.library = library
        self._settings = settings
        self._turn = asyncio.Semaphore(MOST_AT_ONCE)

    async def keep(
        self, form: FormData, param: str, name: str, transcript: str | None, *, force: bool, replace: bool
    ) -> tuple[Voice, list[Problem]]:
        """Puts the file `param` of a form into the library.

        Returns the voice and what is wrong with it: without `force` that is nothing, as UnfitRecording (422) is raised.
        Raises BadAudio, TooLarge, InvalidRequest, and what the library raises.
        """
        check_new_name(name, "name")
        async with self._turn:
            data = await read_file(form, param, self._settings.max_upload_mb * 2**20)
            if data is None:
                raise InvalidRequest(f"{param}: send a recording.", f"参数 {param}：请上传录音。", param=param)
            return await asyncio.to_thread(self._keep, data, param, name, transcript, force, replace)

    def _keep(
        self, data: bytes, param: str, name: str, transcript: str | None, force: bool, replace: bool
    ) -> tuple[Voice, list[Problem]]:
        samples = decode(data, max_seconds=self._settings.max_clip_seconds, param=param).samples
        problems = check(samples, count_words(transcript) if transcript else None)
        if problems and not force:
            raise UnfitRecording(problems, param=param)
        return self.library.put(name, wav.encode(tidy(samples)), transcript, replace=replace), problems

    async def as_wav(self, voice: Voice) -> bytes:
        """A voice's clip at 24 kHz, mono, 16 bit, whatever the folder holds. Raises BadAudio or TooLarge."""
        async with self._turn:
            return await asyncio.to_thread(_as_wav, voice.recording or b"")


def _as_wav(recording: bytes) -> bytes:
    return wav.encode(decode(recording, max_seconds=MAX_SAMPLE_SECONDS, param="name").samples)


class Durations:
    """How long the clips of a library are; each is looked into once."""

    def __init__(self, library: VoiceLibrary) -> None:
        self._library = library
        self._known: dict[tuple[str, str], float | None] = {}

    def of(self, voice: Voice) -> float | None:
        """Seconds, None for what cannot be read."""
        key = (voice.name, voice.version)
        known = self._known  # `keep_only` puts another one in its place, in another thread
        if key not in known:
            known[key] = self._measured(voice.name)
        return known[key]

    def keep_only(self, voices: Sequence[Voice]) -> None:
        """Forgets all the others."""
        wanted = {(voice.name, voice.version) for voice in voices}
        self._known = {key: seconds for key, seconds in self._known.copy().items() if key in wanted}

    def _measured(self, name: str) -> float | None:
        try:
            recording = self._library.get(name).recording or b""
            seconds = duration(recording)
            if seconds is None:
                seconds = decode(recording, max_seconds=MAX_SAMPLE_SECONDS).duration
        except SpeechError:
            return None
        return round(seconds, 3)
