"""Reading request bodies: bytes and forms into SpeechRequest. Whatever is wrong with them is told here."""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from higgs_server.audio.decode import decode
from higgs_server.server.errors import MalformedBody, WrongContentType
from higgs_server.server.schemas import UploadForm
from higgs_server.settings import Settings
from higgs_server.types import InvalidRequest, SpeechRequest, TooLarge, Voice, invalid_request

Body = TypeVar("Body", bound=BaseModel)

UPLOADED_VOICE = "upload"
MAX_REF_TEXT_BYTES = 64 * 1024


async def read_speech_request(request: Request, settings: Settings) -> SpeechRequest:
    """The JSON body of `/generate`. Raises 400, 413, 415 or 422 as SpeechErrors."""
    speech_request = await read_json(request, SpeechRequest)
    check_text_length(speech_request.text, settings)
    return speech_request


async def read_json(request: Request, model: type[Body]) -> Body:
    """A JSON body. Raises MalformedBody, WrongContentType or InvalidRequest."""
    _require_content_type(request, "application/json")
    body = await request.body()
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        if first["type"] == "json_invalid":
            raise MalformedBody("The body is not valid JSON.", "请求体不是有效的 JSON。") from None
        raise invalid_request(first) from None


async def read_upload(request: Request, settings: Settings) -> tuple[SpeechRequest, bytes | None, str | None]:
    """The multipart body of `/generate-upload`: the request, the clip's bytes and its transcript, each if sent.

    Raises 400, 413, 415 or 422 as SpeechErrors.
    """
    _require_content_type(request, "multipart/form-data")
    try:
        form = await request.form(max_files=2, max_fields=50, max_part_size=8 * settings.max_text_length)
    except (MultiPartException, HTTPException, ValueError):
        raise MalformedBody("The body is not a valid form.", "请求体不是有效的表单。") from None
    try:
        fields = _text_fields(form)
        try:
            upload = UploadForm(**fields)
        except ValidationError as error:
            raise invalid_request(error.errors(include_input=False)[0]) from None
        check_text_length(upload.text, settings)
        clip = await _file(form, "ref_audio_file", settings.max_upload_mb * 2**20)
        transcript = upload.ref_text
        written = await _file(form, "ref_text_file", MAX_REF_TEXT_BYTES)
        if written is not None and not (transcript and transcript.strip()):
            transcript = _decode_text(written)
        return upload, clip, transcript
    finally:
        await form.close()


def uploaded_voice(data: bytes, transcript: str | None, settings: Settings, param: str = "ref_audio_file") -> Voice:
    """Decodes a clip (slow: call it off the event loop). Raises BadAudio or TooLarge."""
    clip = decode(data, max_seconds=settings.max_clip_seconds, param=param)
    return Voice(UPLOADED_VOICE, (transcript or "").strip() or None, clip=clip)


def check_text_length(text: str, settings: Settings, param: str = "text") -> None:
    """Raises TooLarge (413)."""
    most = settings.max_text_length
    if len(text) > most:
        raise TooLarge(
            f"{param} has {len(text)} characters, more than {most}. Send it in parts, or raise --max-text-length.",
            f"{param} 共 {len(text)} 个字符，超过上限 {most}。请分段发送，或调大 --max-text-length。",
            param=param,
        )


def _require_content_type(request: Request, wanted: str) -> None:
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != wanted:
        raise WrongContentType(
            f"Send the body as {wanted}, not as {given or 'nothing'}.",
            f"请求体类型应为 {wanted}，而不是 {given or '空'}。",
        )


def _text_fields(form: FormData) -> dict[str, Any]:
    """Text parts by name; an empty one counts as not sent, as browsers send every field of a form."""
    fields = {name: value for name, value in form.items() if isinstance(value, str)}
    return {name: value for name, value in fields.items() if value != "" or name == "text"}


async def _file(form: FormData, name: str, most: int) -> bytes | None:
    part = form.get(name)
    if part is None or (isinstance(part, str) and not part):
        return None
    if not isinstance(part, UploadFile):
        raise InvalidRequest(f"{name}: send a file.", f"参数 {name} 应为文件。", param=name)
    if not part.filename and not part.size:
        return None
    data = await part.read(most + 1)
    if len(data) > most:
        limit = f"{most / 2**20:g} MB"
        raise TooLarge(f"{name} is larger than {limit}.", f"参数 {name} 超过 {limit}。", param=name)
    return data


def _decode_text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidRequest(
            "ref_text_file: not a UTF-8 text.", "参数 ref_text_file 不是 UTF-8 文本。", param="ref_text_file"
        ) from None
