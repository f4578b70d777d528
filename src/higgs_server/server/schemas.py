"""What the native endpoints read and answer, as models; openapi.py has what the document says beside them.

What is spoken is types.SpeechRequest itself: its fields are defined once, for HTTP and Python alike.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from higgs_server.audio.encoders import ResponseFormat
from higgs_server.server.admission import QueueState
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
    queue: Annotated[QueueState, Field(description="Utterances that run and that wait, and the most of each.")]


class VoiceItem(BaseModel):
    """One voice of `GET /voices`."""

    name: str
    file: str
    type: Annotated[str, Field(description="The clip's format, such as wav.")]


class VoiceList(BaseModel):
    """`GET /voices`."""

    voices: list[VoiceItem]
    count: int


class LibraryVoice(BaseModel):
    """A voice under `/v1/audio/voices`."""

    id: str
    name: Annotated[str, Field(description="The same as `id`.")]
    language: Annotated[
        Literal["en", "zh"] | None, Field(description="By the script of the transcript; null where it tells nothing.")
    ]
    duration: Annotated[float | None, Field(description="Seconds of the clip; null where it cannot be read.")]
    transcript: Annotated[str | None, Field(description="What the clip says.")]
    read_only: Annotated[bool, Field(description="It ships with the server.")]


class LibraryVoices(BaseModel):
    """`GET /v1/audio/voices`."""

    voices: list[LibraryVoice]


class ProblemItem(BaseModel):
    """Something about a recording that makes it a poor voice."""

    code: str
    message: str
    advice: str


class NewVoice(LibraryVoice):
    """`POST /v1/audio/voices`."""

    object: Literal["audio.voice"] = "audio.voice"
    type: Literal["audio_sample"] = "audio_sample"
    created_at: Annotated[int, Field(description="Seconds since 1970.")]
    warnings: Annotated[list[ProblemItem], Field(description="What `force` has let pass.")]


class VoiceChange(BaseModel):
    """The body of `PATCH /v1/audio/voices/{name}`; what is left out stays."""

    name: Annotated[str | None, Field(description="The new name.")] = None
    ref_text: Annotated[str | None, Field(description='What the clip says; null or "" for nothing.')] = None


class Deleted(BaseModel):
    """`DELETE /v1/audio/voices/{name}`."""

    id: str
    object: Literal["audio.voice.deleted"] = "audio.voice.deleted"
    deleted: bool = True


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

    audio_base64: Annotated[str, Field(description="A whole file, mono; WAV is 24 kHz, 16 bit.")]
    format: Annotated[ResponseFormat, Field(description="Of that file.")]


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


class ProfileItem(BaseModel):
    """A described voice."""

    name: str
    description: str
    characteristics: Annotated[dict[str, Any], Field(description="As sent, and not kept: the description counts.")] = {}


class ProfileAnswer(BaseModel):
    """Every answer about profiles."""

    success: bool = True
    message: str
    profile: ProfileItem | None = None
    profiles: list[ProfileItem] | None = None
    count: int | None = None


class ProfileBody(BaseModel):
    """The body of `POST /profiles`."""

    name: str
    description: str
    characteristics: dict[str, Any] = {}


class ProfileChange(BaseModel):
    """The body of `PUT /profiles/{name}`."""

    description: Annotated[str | None, Field(description="null leaves it as it is.")] = None
    characteristics: dict[str, Any] | None = None


class UploadedVoice(VoiceList):
    """`POST /upload-audio`."""

    success: bool = True
    message: str
    uploaded_file: str
    uploaded_txt_file: str | None
    warnings: list[ProblemItem]


class UploadedScene(SceneList):
    """`POST /upload-scene`."""

    success: bool = True
    message: str
    uploaded_file: str
    content: str


class RefAudio(BaseModel):
    """`GET /validate-ref-audio`."""

    success: bool = True
    message: str
    exists: bool
    resolved_file: str | None
    search_dir: str


class ErrorDetail(BaseModel):
    """The part of an error for programs."""

    code: str
    param: Annotated[str | None, Field(description="The field at fault.")] = None
    problems: Annotated[list[ProblemItem] | None, Field(description="Of a recording that is refused.")] = None


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
    problems: Annotated[list[ProblemItem] | None, Field(description="Of a recording that is refused.")] = None


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


class GenerateBody(SpeechRequest):
    """The body of `POST /generate`."""

    response_format: Annotated[ResponseFormat, Field(description="Of the answer's sound, a whole file.")] = "wav"


class UploadForm(GenerateBody):
    """The text fields of `POST /generate-upload`; an empty one but `text` counts as not sent."""

    # Numbers come as text.
    model_config = ConfigDict(strict=False)

    ref_text: Annotated[str | None, Field(description="What the clip says.")] = None
