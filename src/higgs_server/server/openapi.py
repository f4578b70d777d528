"""What the OpenAPI document says beside the models: bodies that endpoints read themselves, and errors by status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from higgs_server.audio.encoders import FORMATS
from higgs_server.server.schemas import ErrorBody, Generated, OpenAIErrorBody, UploadForm


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI for a body that the endpoint reads itself."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _whole(model)}}}}


def form_body(files: Mapping[str, str], fields: Mapping[str, str], required: Sequence[str]) -> dict[str, Any]:
    """OpenAPI for a multipart body that the endpoint reads itself: descriptions by name."""
    properties = {name: {"type": "string", "format": "binary", "description": text} for name, text in files.items()}
    properties |= {name: {"type": "string", "description": text} for name, text in fields.items()}
    schema = {"type": "object", "properties": properties, "required": list(required)}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def generated_answer() -> dict[int | str, dict[str, Any]]:
    """OpenAPI for the answers of `/generate` and `/generate-upload`: JSON, or by `Accept` the file itself."""
    files = {form.content_type: {"schema": {"type": "string", "format": "binary"}} for form in FORMATS.values()}
    return {200: {"model": Generated, "content": files}}


def upload_body() -> dict[str, Any]:
    """OpenAPI for the multipart body of `/generate-upload`, whose fields but `text` may be empty."""
    schema = _whole(UploadForm)
    binary = {"type": "string", "format": "binary"}
    fields = schema["properties"]
    fields |= {name: _or_empty(field) for name, field in fields.items() if name != "text"}
    fields |= {
        "ref_audio_file": {**binary, "description": "The voice to speak with: any common audio format."},
        "ref_text_file": {**binary, "description": "What the clip says, as a text file."},
    }
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def _or_empty(field: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a form's field that counts as not sent where it is empty."""
    notes = {key: field[key] for key in ("title", "description", "default") if key in field}
    kinds = field.get("anyOf") or [{key: value for key, value in field.items() if key not in notes}]
    text = {"type": "string"}
    return {**notes, "anyOf": kinds if text in kinds else [*kinds, {**text, "maxLength": 0}]}


def _whole(model: type[BaseModel]) -> dict[str, Any]:
    """A model's schema with the models it names put in: FastAPI's document has no place for them."""
    schema = model.model_json_schema()
    named = schema.pop("$defs", {})

    def put_in(node: Any) -> Any:
        if isinstance(node, list):
            return [put_in(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return put_in(named[node["$ref"].rpartition("/")[2]])
        return {key: put_in(value) for key, value in node.items()}

    whole: dict[str, Any] = put_in(schema)
    return whole


def _errors(model: type[BaseModel], *statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": model, "description": _STATUSES[status]} for status in statuses}


_STATUSES = {
    400: "The body is not what its content type says.",
    401: "A key is needed.",
    403: "A web page of another origin asks, or what is to be changed ships with the server.",
    404: "No voice, scene, profile or page of that name; the message names those that exist.",
    405: "Another method than this path takes.",
    409: "There is one of that name already.",
    413: "Text, clip or body beyond its limit.",
    415: "A content type or an audio format that is not read.",
    422: "A field is wrong, the model cannot do what was asked, or a recording is refused.",
    429: "Too many requests from this caller; Retry-After says when to come again.",
    431: "More headers, or longer ones, than are read.",
    500: "Something went wrong here; the server's log says what.",
    503: "No model can speak at present, or too many wait already; Retry-After says when to come again.",
    504: "The time that the request may take is over.",
    507: "A folder or a file cannot be read or written, or the disk is full.",
}
# Whatever is asked, its key, its headers, its origin, the size of its body and the caller's rate are looked at first.
_ANY = (400, 401, 403, 404, 405, 413, 422, 429, 431, 500)
ANY_ERRORS = _errors(ErrorBody, *_ANY)
_SPEAKING = (*_ANY, 415, 503, 504, 507)
_KEEPING = (*_ANY, 409, 415, 507)
ERRORS = _errors(ErrorBody, *_SPEAKING)
LIBRARY_ERRORS = _errors(ErrorBody, *_KEEPING)
# OpenAI's API knows no 422: there it is 400, but for a recording that is refused.
OPENAI_ERRORS = _errors(OpenAIErrorBody, *(status for status in _SPEAKING if status != 422))
OPENAI_LIBRARY_ERRORS = _errors(OpenAIErrorBody, *_KEEPING)
