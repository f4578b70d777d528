"""What the native endpoints read and answer, as models for the OpenAPI document.

The body of `/generate` is types.SpeechRequest itself: its fields are defined once, for HTTP and Python alike.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from higgs_server.types import FinishReason, SpeechRequest


class Info(BaseModel):
    """`GET /info`."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: Annotated[str, Field(description="What --model-path says.")]
    device: str
    is_loaded: bool
    max_new_tokens: int
    supported_features: Annotated[list[str], Field(description="What the loaded model can really do.")]
    status: Annotated[Literal["loading", "ready", "failed"], Field(description="As `/ready` has it.")]
    version: str
    sampling_rate: int
    dtype: str | None = None
    note: Annotated[str | None, Field(description="Something to know about the loaded model.")] = None


class VoiceItem(BaseModel):
    """One voice of `GET /voices`."""

    name: str
    file: str
    type: Annotated[str, Field(description="The clip's format, such as wav.")]


class VoiceList(BaseModel):
    """`GET /voices`."""

    voices: list[VoiceItem]
    count: int


class SceneItem(BaseModel):
    """One scene of `GET /scenes`."""

    name: str
    content: str
    file: str


class SceneList(BaseModel):
    """`GET /scenes`."""

    scenes: list[SceneItem]
    count: int


class Spoken(BaseModel):
    """What an utterance was, without its sound: the `done` event of `/generate-stream`."""

    success: bool = True
    message: str
    sampling_rate: int
    duration: Annotated[float, Field(description="Seconds.")]
    generated_text: Annotated[str, Field(description="What was spoken: the text after normalisation.")]
    seed: int
    finish_reason: FinishReason


class Generated(Spoken):
    """`POST /generate` and `POST /generate-upload`."""

    audio_base64: Annotated[str, Field(description="A whole WAV file: 16 bit, mono, 24 kHz.")]


class PlannedChunk(BaseModel):
    """A piece of a text that is generated in one go."""

    text: Annotated[str, Field(description="As the model reads it.")]
    span: Annotated[
        tuple[int, int],
        Field(description="[start, end) in the text that was sent, in Unicode code points (JavaScript counts UTF-16)."),
    ]
    speakers: Annotated[list[int], Field(description="Numbers of its `[SPEAKERn]` tags, ascending; none without tags.")]
    seconds: Annotated[float, Field(description="How long it will take to say, roughly.")]


class Plan(BaseModel):
    """`POST /plan`. Spans ascend, do not overlap, and leave out nothing that is spoken."""

    text: Annotated[str, Field(description="The whole text as the model reads it: `generated_text` of `/generate`.")]
    chunks: list[PlannedChunk]
    seconds: Annotated[float, Field(description="How long all of it will take to say, roughly.")]
    checked: Annotated[
        bool,
        Field(description="Whether the model was asked. Until it is loaded, what only it refuses is not refused here."),
    ]


class ErrorDetail(BaseModel):
    """The part of an error for programs."""

    code: str
    param: Annotated[str | None, Field(description="The field at fault.")] = None


class ErrorBody(BaseModel):
    """Every native error."""

    success: bool = False
    message: str
    error: ErrorDetail


class OpenAIErrorDetail(BaseModel):
    """What went wrong, as OpenAI has it."""

    message: str
    type: str
    param: Annotated[str | None, Field(description="The field at fault.")] = None
    code: str | None = None


class OpenAIErrorBody(BaseModel):
    """Every error under /v1."""

    error: OpenAIErrorDetail


class Readiness(BaseModel):
    """`GET /ready`."""

    status: Literal["loading", "ready", "failed"]
    model: str
    stage: Annotated[str, Field(description="What loading is at.")]
    progress: Annotated[float, Field(description="0 to 1.")]
    message: str


class UploadForm(SpeechRequest):
    """The text fields of `POST /generate-upload`. Numbers come as text there, so parsing is lenient."""

    model_config = ConfigDict(strict=False)

    ref_text: Annotated[str | None, Field(description="What the clip says.")] = None


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI for a body that the endpoint reads itself."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _whole(model)}}}}


def upload_body() -> dict[str, Any]:
    """OpenAPI for the multipart body of `/generate-upload`."""
    schema = _whole(UploadForm)
    binary = {"type": "string", "format": "binary"}
    schema["properties"] |= {
        "ref_audio_file": {**binary, "description": "The voice to speak with: any common audio format."},
        "ref_text_file": {**binary, "description": "What the clip says, as a text file."},
    }
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


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
    404: "No voice, scene, profile or page of that name; the message names those that exist.",
    405: "Another method than this path takes.",
    413: "Text, clip or body beyond its limit.",
    415: "A content type or an audio format that is not read.",
    422: "A field is wrong, or the loaded model cannot do what was asked.",
    429: "Too many requests from this caller; Retry-After says when to come again.",
    500: "Something went wrong here; the server's log says what.",
    503: "No model can speak at present, or too many wait already; Retry-After says when to come again.",
    504: "The time that the request may take is over.",
}
# Whatever is asked, its key, the size of its body and the caller's rate are looked at first.
ANY_ERRORS = _errors(ErrorBody, 400, 401, 404, 405, 413, 422, 429, 500)
ERRORS = _errors(ErrorBody, *_STATUSES)
# OpenAI's API knows no 422: there it is 400.
OPENAI_ERRORS = _errors(OpenAIErrorBody, *(status for status in _STATUSES if status != 422))
