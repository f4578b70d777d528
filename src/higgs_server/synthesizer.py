"""The story of an utterance: request -> text -> script -> backend -> AudioChunks.

There is one generator of AudioChunks, and a whole answer is that stream joined. Knows no HTTP and no model: the
backend is whatever the BACKENDS table loads.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from higgs_server.backends import load_backend
from higgs_server.engine.interface import Backend
from higgs_server.library.profiles import PROFILE_PREFIX, ProfileLibrary
from higgs_server.library.scenes import SceneLibrary
from higgs_server.library.voices import VoiceLibrary
from higgs_server.settings import Settings
from higgs_server.text.chunk import chunk
from higgs_server.text.normalize import normalized
from higgs_server.types import (
    SAMPLING_RATE,
    AudioChunk,
    Cancellation,
    Codes,
    FinishReason,
    InvalidRequest,
    LoadOptions,
    NotFound,
    Progress,
    Samples,
    SamplingParams,
    Scene,
    Script,
    Speech,
    SpeechRequest,
    Unsupported,
    Voice,
)

MAX_DRAWN_SEED = 2**31 - 1
"""Seeds we draw stay exact in every client's numbers (JavaScript's end at 2**53)."""
DEFAULT_CONTEXT_CHUNKS = 2


class Synthesizer:
    """A loaded model with its voices, scenes and profiles. Safe to use from many threads."""

    def __init__(self, backend: Backend, voices: VoiceLibrary, scenes: SceneLibrary, profiles: ProfileLibrary) -> None:
        self.backend = backend
        self.voices = voices
        self.scenes = scenes
        self.profiles = profiles

    @classmethod
    def from_pretrained(
        cls,
        model_path: str | Path,
        *,
        voice_prompts_dir: str | Path | None = None,
        scene_prompts_dir: str | Path | None = None,
        progress: Progress = lambda stage, fraction: None,
        **options: Any,
    ) -> Synthesizer:
        """Loads "embedded", a hub id or a folder.

        `options` are those of LoadOptions: device, dtype, quantization, revision, audio_tokenizer_path,
        max_new_tokens, max_running, max_context, guard. The codec is loaded with the first sound. Raises LoadError
        saying what is missing.
        """
        folders = {
            name: folder
            for name, folder in (("voice_prompts_dir", voice_prompts_dir), ("scene_prompts_dir", scene_prompts_dir))
            if folder is not None
        }
        settings = Settings(**folders)  # type: ignore[arg-type]
        load_options = LoadOptions(model_path=str(model_path), codec_on_demand=True, **options)
        return cls.load(load_options, settings, progress)

    @classmethod
    def load(cls, options: LoadOptions, settings: Settings, progress: Progress) -> Synthesizer:
        """Loads a model beside the libraries that the settings name."""
        voices = settings.voice_prompts_dir
        return cls(
            load_backend(options, progress),
            VoiceLibrary(voices),
            SceneLibrary(settings.scene_prompts_dir),
            ProfileLibrary(voices),
        )

    def close(self) -> None:
        """Frees the model; what is being spoken ends with Cancelled."""
        self.backend.close()

    # --- request -> script ------------------------------------------------------------------------------------------

    def plan(self, request: SpeechRequest, clip: Voice | None = None, scene: Scene | None = None) -> Script:
        """Everything that can be refused is refused here, before any sound.

        `clip` is an uploaded voice that takes the place of `ref_audio`, `scene` a description that takes the place of
        `scene_prompt`. Raises InvalidRequest, NotFound or Unsupported.
        """
        info = self.backend.info
        own = info.extra.get("voices", ())
        script = draft(request, self.voices, self.scenes, self.profiles, info.max_new_tokens, clip, scene, own)
        self.backend.check(script)
        return script

    # --- script -> sound --------------------------------------------------------------------------------------------

    def perform(self, script: Script, cancellation: Cancellation | None = None) -> Iterator[AudioChunk]:
        """The one generator of sound. Closing it, or cancelling, stops the backend."""
        cancellation = cancellation or Cancellation()
        chunks = self.backend.speak(script, cancellation)
        try:
            for piece in chunks:
                cancellation.check()
                yield piece
        finally:
            cancellation.cancel()

    def stream(self, text: str, **options: Any) -> Iterator[AudioChunk]:
        """Speaks `text`; options are the fields of SpeechRequest. Raises before the first chunk what `plan` raises."""
        return self.perform(self.plan(SpeechRequest.parse(text=text, **options)))

    def generate(self, text: str, **options: Any) -> Speech:
        """Speaks `text` and waits for the end; options are the fields of SpeechRequest."""
        script = self.plan(SpeechRequest.parse(text=text, **options))
        return join(script, list(self.perform(script)))

    def generate_codes(
        self,
        prompt: str,
        reference_codes: Sequence[npt.ArrayLike] = (),
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        ras_win_len: int = 0,
        seed: int | None = None,
        **sampling: Any,
    ) -> Codes:
        """Delayed rows [rows, codebooks] for a literal prompt, the first row all stream-BOS; needs no codec.

        `reference_codes` are clips [frames, codebooks] of whole numbers without delay, in the order of the prompt's
        audio placeholders. Raises Unsupported where the model is no Higgs checkpoint, InvalidRequest for parameters
        out of range, for codes that are none, and for what does not fit the context.
        """
        generate = getattr(self.backend, "generate_codes", None)
        if generate is None:
            raise Unsupported(
                f"{self.backend.info.name} has no codec frames; load a Higgs checkpoint.",
                f"{self.backend.info.name} 没有音频编码帧，请加载 Higgs 模型。",
            )
        fields = {"temperature": temperature, "ras_win_len": ras_win_len, "seed": seed, **sampling}
        fields["max_new_tokens"] = None if max_new_tokens is None else int(max_new_tokens)
        params = _complete(SpeechRequest.parse(text=prompt, **fields), self.backend.info.max_new_tokens)
        codes: Codes = generate(prompt, [np.asarray(clip) for clip in reference_codes], params)
        return codes


def draft(
    request: SpeechRequest,
    voices: VoiceLibrary,
    scenes: SceneLibrary,
    profiles: ProfileLibrary,
    max_new_tokens: int,
    clip: Voice | None = None,
    scene: Scene | None = None,
    own_voices: Collection[str] = (),
) -> Script:
    """A script that no backend has checked: text cut, names resolved, all that can be refused without a model refused.

    `own_voices` are names that the model knows by itself; a voice of the library with such a name goes first.
    Raises InvalidRequest or NotFound.
    """
    pieces = chunk(
        normalized(request.text), request.chunk_method, request.chunk_max_word_num, request.chunk_max_num_turns
    )
    if not pieces:
        raise InvalidRequest("text is empty: send something to say.", "text 为空：请提供要朗读的文字。", param="text")
    names, profile = (request.ref_audio or "").strip(), None
    if clip is not None:
        chosen: tuple[Voice, ...] = (clip,)
    elif names.startswith(PROFILE_PREFIX):
        chosen, profile = (), profiles.get(names.removeprefix(PROFILE_PREFIX))
    else:
        chosen = tuple(_voice(name, voices, own_voices) for name in names.split(",")) if names else ()
    context = request.generation_chunk_buffer_size
    return Script(
        chunks=tuple(piece.text for piece in pieces),
        sampling=_complete(request, max_new_tokens),
        voices=chosen,
        profile=profile,
        scene=scene or scenes.get(request.scene_prompt),
        context_chunks=DEFAULT_CONTEXT_CHUNKS if context is None else context,
        spans=tuple((piece.start, piece.end) for piece in pieces),
    )


def _voice(name: str, voices: VoiceLibrary, own_voices: Collection[str]) -> Voice:
    try:
        return voices.get(name)
    except NotFound:
        if name.strip() in own_voices:
            return Voice(name.strip())
        raise


def _complete(request: SpeechRequest, most: int) -> SamplingParams:
    asked = most if request.max_new_tokens is None else request.max_new_tokens
    fields = {name: getattr(request, name) for name in SamplingParams.model_fields}
    fields["max_new_tokens"] = min(asked, most)
    fields["seed"] = secrets.randbelow(MAX_DRAWN_SEED) if request.seed is None else request.seed
    return SamplingParams(**fields)


def join(script: Script, chunks: Sequence[AudioChunk]) -> Speech:
    """A whole utterance from all of its chunks."""
    samples: Samples = np.concatenate([piece.samples for piece in chunks]) if chunks else np.zeros(0, np.float32)
    codes = [piece.codes for piece in chunks if piece.codes is not None]
    finish_reason: FinishReason = next((piece.finish_reason for piece in chunks if piece.finish_reason), "stop")
    assert script.sampling.seed is not None
    return Speech(
        samples=samples,
        sampling_rate=SAMPLING_RATE,
        seed=script.sampling.seed,
        finish_reason=finish_reason,
        generated_text=script.text,
        codes=np.concatenate(codes) if codes else None,
    )
