"""Reading request bodies: bytes and forms into SpeechRequest. Whatever is wrong with them is told here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
from higgs_server.types import InvalidRequest, SpeechRequest, StorageFailed, TooLarge, Voice, invalid_request

Body = TypeVar("Body", bound=BaseModel)
Asked = TypeVar("Asked", bound=SpeechRequest)

UPLOADED_VOICE = "upload"
MAX_REF_TEXT_BYTES = 64 * 1024


async def read_speech_request(request: Request, model: type[Asked], settings: Settings) -> Asked:
    """A JSON body with a text to speak. Raises 400, 413, 415 or 422 as SpeechErrors."""
    speech_request = await read_json(request, model)
    check_text_length(speech_request.text, settings)
    return speech_request


async def read_json(request: Request, model: type[Body]) -> Body:
    """A JSON body. Raises MalformedBody, WrongContentType or InvalidRequest."""
    _require_content_type(request, "application/json")
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        if first["type"] == "json_invalid":
            raise MalformedBody("The body is not valid JSON.", "请求体不是有效的 JSON。") from None
        raise invalid_request(first) from None


async def read_upload(request: Request, settings: Settings) -> tuple[UploadForm, bytes | None, str | None]:
    """The multipart body of `/generate-upload`: the request, the clip's bytes and its transcript, each if sent.

    Raises 400, 413, 415 or 422 as SpeechErrors.
    """
    async with read_form(request, 2, settings) as form:
        fields = _text_fields(form)
        try:
            upload = UploadForm(**fields)
        except ValidationError as error:
            raise invalid_request(error.errors(include_input=False)[0]) from None
        check_text_length(upload.text, settings)
        check_text_length(upload.ref_text or "", settings, "ref_text")
        clip = await read_file(form, "ref_audio_file", settings.max_upload_mb * 2**20)
        transcript = upload.ref_text
        written = await read_text_file(form, "ref_text_file")
        if written is not None and not (transcript and transcript.strip()):
            transcript = written
        return upload, clip, transcript


@asynccontextmanager
async def read_form(request: Request, max_files: int, settings: Settings) -> AsyncIterator[FormData]:
    """A multipart body; what is large in it lies on disk until the block ends. Raises 400, 415 or 507."""
    _require_content_type(request, "multipart/form-data")
    try:
        # A text that is too long is told as such, where its field is known.
        part = settings.max_upload_mb * 2**20
        form = await request.form(max_files=max_files, max_fields=50, max_part_size=part)
    except (MultiPartException, HTTPException, ValueError):
        raise MalformedBody("The body is not a valid form.", "请求体不是有效的表单。") from None
    except OSError as error:
        raise StorageFailed(
            f"There is no room for the upload here ({error.strerror}): the server's temporary folder needs space.",
            f"服务器没有空间存放上传的内容（{error.strerror}）：请清理其临时目录。",
        ) from error
    try:
        yield form
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


async def read_file(form: FormData, name: str, most: int) -> bytes | None:
    """A file of a form, None where it was not sent. Raises TooLarge beyond `most` bytes."""
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


def read_text(form: FormData, name: str) -> str | None:
    """A text of a form, None where it was not sent or is empty. Raises TooLarge."""
    part = form.get(name)
    if isinstance(part, UploadFile):
        raise InvalidRequest(f"{name}: send text, not a file.", f"参数 {name} 应为文字，而不是文件。", param=name)
    if part is not None and len(part.encode("utf-8", "replace")) > MAX_REF_TEXT_BYTES:
        limit = f"{MAX_REF_TEXT_BYTES // 1024} KB"
        raise TooLarge(f"{name} is larger than {limit}.", f"参数 {name} 超过 {limit}。", param=name)
    return part.strip() or None if part is not None else None


async def read_text_file(form: FormData, name: str) -> str | None:
    """A small UTF-8 file of a form, None where it was not sent."""
    data = await read_file(form, name, MAX_REF_TEXT_BYTES)
    try:
        return None if data is None else data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidRequest(f"{name}: not a UTF-8 text.", f"参数 {name} 不是 UTF-8 文本。", param=name) from None
