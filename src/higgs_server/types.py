"""The vocabulary of the server: what is asked, what is spoken, and what can go wrong.

Knows nothing of HTTP, of files or of any model. Everything here is frozen; every other module speaks in these words.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

SAMPLING_RATE = 24_000
"""Samples a second of everything spoken here: mono, both models' native rate."""
FRAMES_PER_SECOND = 25
"""Codec frames of Higgs Audio v2 a second: the unit of max_new_tokens and of usage, whichever model speaks."""

DEFAULT_SCENE = "quiet_indoor"
MAX_SEED = 2**63 - 1

Samples = npt.NDArray[np.float32]
"""Mono PCM at SAMPLING_RATE, float32 [n], nominally within [-1, 1]."""
Codes = npt.NDArray[np.int64]
"""Codec frames without delay, [frames, codebooks]."""

FinishReason = Literal["stop", "length", "guard"]
"""The model ended by itself, reached max_new_tokens, or was ended by the guard against endless speech."""

Progress = Callable[[str, float], None]
"""Called while a model loads: what is being done, and the fraction done so far (0 to 1)."""


class Feature(StrEnum):
    """What a backend can do. Values are the wire's names in `/info.supported_features`."""

    SINGLE_SPEAKER = "单说话人音频生成"
    MULTI_SPEAKER = "多说话人音频生成"
    VOICE_CLONING = "语音克隆"
    SMART_VOICE = "智能语音"
    SCENE = "场景描述"
    STREAMING = "流式生成"


# --- errors ---------------------------------------------------------------------------------------------------------


class SpeechError(Exception):
    """An error a user can act on. `str(error)` is English, `zh` the same in Chinese.

    `code` is for programs, `status` is the HTTP status that says the same, `param` names the field at fault.
    `retry_after` is in seconds, None where waiting does not help.
    """

    status = 500
    code = "internal_error"

    def __init__(
        self,
        message: str,
        zh: str | None = None,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.zh = zh or message
        self.param = param
        self.retry_after = retry_after
        if code:
            self.code = code


class InvalidRequest(SpeechError):
    """A field is missing, of the wrong type or out of range."""

    status, code = 422, "invalid_request"


class NotFound(SpeechError):
    """A voice, scene or profile of that name does not exist."""

    status, code = 404, "not_found"


class AlreadyExists(SpeechError):
    """A voice or profile of that name is there already."""

    status, code = 409, "already_exists"


class ReadOnly(SpeechError):
    """What ships with the server is not changed."""

    status, code = 403, "read_only"


class StorageFailed(SpeechError):
    """A folder that cannot be read or written, or that is full."""

    status, code = 507, "storage_failed"


class Unsupported(SpeechError):
    """The loaded model cannot do what was asked; the message says what to start instead."""

    status, code = 422, "unsupported"


class TooLarge(SpeechError):
    """Text, body or upload beyond its limit."""

    status, code = 413, "too_large"


class BadAudio(SpeechError):
    """Bytes that no decoder takes for sound, or sound that is no use as a reference."""

    status, code = 415, "bad_audio"


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a recording, and what to do about it."""

    code: str
    message: str
    advice: str
    zh_message: str
    zh_advice: str


class UnfitRecording(SpeechError):
    """A recording that would make a poor voice, for one reason or several."""

    status, code = 422, "unfit_recording"

    def __init__(self, problems: Sequence[Problem], *, param: str):
        super().__init__(
            " ".join(f"{problem.message} {problem.advice}" for problem in problems),
            "".join(f"{problem.zh_message}{problem.zh_advice}" for problem in problems),
            param=param,
        )
        self.problems = tuple(problems)


class NotReady(SpeechError):
    """No model can speak at present."""

    status, code = 503, "not_ready"


class LoadError(SpeechError):
    """A model cannot be had: hub out of reach, folder missing, not enough memory, extra not installed."""

    status, code = 503, "model_unavailable"


_KINDS = {
    "MemoryError": ("out of memory", "内存不足"),
    "OutOfMemoryError": ("out of memory", "内存不足"),  # torch's
    "ArithmeticError": ("the model's output is not finite", "模型输出不是有限数"),
}


def kind_of(error: Exception) -> tuple[str, str]:
    """What a client may know of a library's exception, in English and Chinese: its text can have paths in it."""
    name = type(error).__name__
    return _KINDS.get(name, (name, name))


class GenerationFailed(SpeechError):
    """The model failed at this request; others go on."""

    status, code = 500, "generation_failed"

    def __init__(self, cause: Exception) -> None:
        """`cause` is told by its kind, and kept without its frames: they hold tensors, and clients the error."""
        kind, zh = kind_of(cause)
        super().__init__(
            f"Generation failed ({kind}). Try again, and with another seed or reference clip if it fails again.",
            f"生成失败（{zh}）。请重试；若再次失败，请更换种子或参考音频。",
        )
        self.__cause__ = cause.with_traceback(None)


class Cancelled(Exception):
    """The client has gone or asked to stop; nobody is there to read an error."""


# --- what is asked --------------------------------------------------------------------------------------------------


class SamplingParams(BaseModel):
    """How codec frames are drawn. Field names, ranges and defaults are the wire's (`POST /generate`)."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    temperature: Annotated[
        float,
        Field(ge=0.0, le=2.0, allow_inf_nan=False, description="Randomness; 0 always takes the likeliest code."),
    ] = 0.7
    top_k: Annotated[
        int | None, Field(ge=0, description="Draw among the k likeliest codes; null or 0 switches it off.")
    ] = 50
    top_p: Annotated[
        float,
        Field(gt=0.0, le=1.0, allow_inf_nan=False, description="Draw among the likeliest codes that sum to this."),
    ] = 0.95
    max_new_tokens: Annotated[
        int | None,
        Field(
            ge=1,
            description="Longest answer in frames (25 a second), of each piece of a text that is cut into pieces; null "
            "for the server's --max-new-tokens, which is its cap.",
        ),
    ] = None
    seed: Annotated[
        int | None,
        Field(ge=0, le=MAX_SEED, description="Same seed and request, same audio; null draws one and returns it."),
    ] = None
    ras_win_len: Annotated[
        int | None,
        Field(le=1024, description="Window of repetition-aware sampling in frames; null, 0 or less switches it off."),
    ] = 7
    ras_win_max_num_repeat: Annotated[
        int, Field(ge=1, description="A code already this often in the window is drawn again.")
    ] = 2


def _whole_characters(text: str) -> str:
    """Refuses a lone surrogate: JSON cannot bring one, Python and a command line can, and no tokenizer reads it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError(
            "half_a_character", "character {place} is half of one: send valid Unicode", {"place": error.start + 1}
        ) from None
    return text


class SpeechRequest(SamplingParams):
    """One utterance as a client asks for it: the JSON body of `POST /generate`, names not resolved yet."""

    text: Annotated[
        str,
        AfterValidator(_whole_characters),
        Field(description="What to say. `[SPEAKER0] …` lines give each speaker a voice."),
    ]
    ref_audio: Annotated[
        str | None,
        Field(description="A voice's name, `a,b` for SPEAKER0 and SPEAKER1, or `profile:NAME`; null for any voice."),
    ] = None
    scene_prompt: Annotated[str | None, Field(description='Name of a scene; null, "" or "empty" for none.')] = (
        DEFAULT_SCENE
    )
    chunk_method: Annotated[
        Literal["speaker", "word"] | None,
        Field(description="Generate long text piece by piece: by speaker turns, by words, or not at all."),
    ] = None
    chunk_max_word_num: Annotated[int, Field(ge=1, le=10_000, description="Most words in a piece (by words).")] = 200
    chunk_max_num_turns: Annotated[int, Field(ge=1, le=1_000, description="Speaker turns in a piece.")] = 1
    generation_chunk_buffer_size: Annotated[
        int | None, Field(ge=0, le=100, description="Earlier pieces kept as context; null means 2.")
    ] = None

    @classmethod
    def parse(cls, **fields: Any) -> SpeechRequest:
        """Builds a request from Python keywords. Raises InvalidRequest naming the first field at fault."""
        try:
            return cls(**fields)
        except ValidationError as error:
            raise invalid_request(error.errors()[0]) from None


def invalid_request(error: Any) -> InvalidRequest:
    """One pydantic error (`ValidationError.errors()[i]`) as ours."""
    where = [str(part) for part in error["loc"] if part not in ("body", "query", "path", "header")]
    param = ".".join(where) or None
    reason = str(error["msg"])
    name = param or "request"
    return InvalidRequest(f"{name}: {reason}", f"参数 {name} 无效：{reason}", param=param)


@dataclass(frozen=True, slots=True)
class Clip:
    """A reference recording, decoded: what a cloning backend listens to."""

    samples: Samples
    sampling_rate: int = SAMPLING_RATE

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.samples) / self.sampling_rate


@dataclass(frozen=True, slots=True)
class Voice:
    """A voice to speak with. `transcript` is what the clip says, None where nobody wrote it down."""

    name: str
    transcript: str | None = None
    file: Path | None = None
    recording: bytes | None = field(default=None, repr=False)
    """The content of `file`, read at the same moment as the transcript; None in a listing."""
    clip: Clip | None = field(default=None, repr=False)
    """The recording of an upload, decoded already; else `recording` is decoded when it is needed."""
    version: str = ""
    """Changes with the recording."""
    read_only: bool = False
    """It ships with the server."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A description of the place the speech is heard in."""

    name: str
    content: str
    file: Path | None = None
    """None for a description that came with a request."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A voice described in words instead of by a clip."""

    name: str
    description: str


@dataclass(frozen=True, slots=True)
class Script:
    """One utterance ready to be spoken: names resolved, text normalised and cut, seed drawn.

    `chunks` are generated one after another; `[SPEAKERn]` tags stay in them. `voices[n]` speaks for SPEAKERn.
    `voices`, `profile` and neither are the three ways to choose a voice; a profile goes with no voices.
    """

    chunks: tuple[str, ...]
    sampling: SamplingParams
    """Complete: seed and max_new_tokens are never None here."""
    voices: tuple[Voice, ...] = ()
    profile: Profile | None = None
    scene: Scene | None = None
    context_chunks: int = 2
    """How many chunks already spoken stay in the prompt (`generation_chunk_buffer_size`)."""
    spans: tuple[tuple[int, int], ...] = ()
    """`[start, end)` of each chunk in the text that was asked for, in Unicode code points."""

    @property
    def text(self) -> str:
        """What is spoken, whole."""
        return "\n".join(self.chunks)


# --- what is spoken -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AudioChunk:
    """A piece of sound as soon as it exists. Joined in order, the samples are the whole utterance.

    `chunk` of `chunks` is the piece of text it belongs to. The last AudioChunk of an utterance, and only that one,
    carries `finish_reason` (its samples may be empty).
    """

    samples: Samples
    chunk: int = 0
    chunks: int = 1
    codes: Codes | None = None
    """[frames, codebooks] newly generated, on backends that have codec frames."""
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Speech:
    """A whole utterance."""

    samples: Samples = field(repr=False)
    sampling_rate: int
    seed: int
    finish_reason: FinishReason
    generated_text: str
    codes: Codes | None = field(default=None, repr=False)

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.samples) / self.sampling_rate


class Cancellation:
    """Says from any thread that nobody listens any more. Callbacks run once, in the thread that cancels."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """No truth value of the object: one that nobody has cancelled yet must not look like none."""
        return self._cancelled

    def cancel(self) -> None:
        """Idempotent."""
        with self._lock:
            self._cancelled = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Runs `callback` when cancelled; at once if that has happened already."""
        with self._lock:
            if not self._cancelled:
                self._callbacks.append(callback)
                return
        callback()

    def check(self) -> None:
        """Raises Cancelled once cancelled."""
        if self._cancelled:
            raise Cancelled


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is loaded, for `/info` and the logs."""

    name: str
    device: str
    features: frozenset[Feature]
    max_new_tokens: int
    dtype: str = "float32"
    max_running: int = 1
    """Utterances it works on at the same time; what is more had better wait."""
    note: str | None = None
    """Something a user must know about this model, in one sentence."""
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Which model, and how. `model_path` is "embedded", a hub id, a folder, or the address of another engine."""

    model_path: str
    audio_tokenizer_path: str = "bosonai/higgs-audio-v2-tokenizer"
    device: str = "auto"
    dtype: str = "auto"
    quantization: str = "auto"
    revision: str | None = None
    max_new_tokens: int = 2048
    max_running: int | None = None
    """Utterances generated at the same time; None for what suits the device."""
    max_context: int = 4096
    """Positions an utterance has for prompt and answer together."""
    guard: float = 4.0
    """Times a slow reader's time a text may take; 0 switches the guards against endless speech off."""
    remote_api_key: str | None = field(default=None, repr=False)
    """What another engine asks for."""
    codec_on_demand: bool = False
    """Load the codec when the first sound needs it, not at once."""
