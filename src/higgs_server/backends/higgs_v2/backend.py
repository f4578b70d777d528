"""Higgs Audio v2 as a backend: script -> prompts -> engine -> codec -> AudioChunks.

Knows no HTTP and no folders of voices. One engine thread generates for everybody; each utterance is read in the
thread of whoever asked for it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from higgs_server.backends.higgs_v2.clips import ClipCodes
from higgs_server.backends.higgs_v2.codec import HiggsCodec, load_codec
from higgs_server.backends.higgs_v2.config import HiggsConfig
from higgs_server.backends.higgs_v2.hub import CODEC_FILES, LANGUAGE_MODEL_FILES, resolve
from higgs_server.backends.higgs_v2.loading import choose_device, choose_quantization, load_model
from higgs_server.backends.higgs_v2.prompt import AudioForm, compose_chunk
from higgs_server.backends.higgs_v2.tokenizer import HiggsTokenizer
from higgs_server.engine.codec_stream import CodecWorker
from higgs_server.engine.engine import Engine
from higgs_server.engine.interface import BackendStats, Run
from higgs_server.engine.sequence import positions_of
from higgs_server.engine.silence import BLOCK, SilenceGuard
from higgs_server.text.duration import slow_seconds, usual_seconds
from higgs_server.types import (
    FRAMES_PER_SECOND,
    AudioChunk,
    Cancellation,
    Codes,
    Feature,
    FinishReason,
    LoadError,
    LoadOptions,
    ModelInfo,
    NotReady,
    Progress,
    Samples,
    SamplingParams,
    Script,
)

OWN_CODEC = "codec"
"""A model folder may carry its codec in a folder of this name."""
DEFAULT_CODEC = LoadOptions(model_path="").audio_tokenizer_path
DEFAULT_SLOTS = {"cuda": 32, "mps": 4, "cpu": 4}
_SPARE = 1.2
"""Of what a text usually takes, what some voices need."""
CPU_NOTE = {
    False: "Higgs Audio v2 runs without a GPU here: expect it to be many times slower than real time.",
    True: "Higgs Audio v2 runs without a GPU here: only fast memory lets it keep up with speech.",
}
"""Not quantised, and quantised."""


@dataclass(frozen=True, slots=True)
class Take:
    """One chunk of a script, ready for the engine."""

    runs: list[Run]
    prefix_len: int
    sampling: SamplingParams
    frame_budget: int | None


def _within(take: Take, room: int) -> Take:
    return replace(take, sampling=take.sampling.model_copy(update={"max_new_tokens": room}))


class HiggsBackend:
    """Implements `engine.interface.Backend`."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: HiggsTokenizer,
        codec: CodecOnDemand,
        info: ModelInfo,
        form: AudioForm,
        guard: float,
    ) -> None:
        """`guard`: how many times a slow reader's time a text may take; 0 switches every guard off."""
        self.info = info
        self._engine = engine
        self._tokenizer = tokenizer
        self._codec = codec
        self._clips = ClipCodes(codec.get)
        self._form = form
        self._guard = guard

    @classmethod
    def load(cls, options: LoadOptions, progress: Progress) -> HiggsBackend:
        """Raises LoadError saying what is missing, before anything large is allocated where that can be known."""
        device = choose_device(options.device)
        folder = resolve(options.model_path, LANGUAGE_MODEL_FILES, revision=options.revision, progress=progress)
        HiggsConfig.from_folder(folder)  # a wrong folder is said before a codec is downloaded for it
        codec = CodecOnDemand(codec_of(folder, options), device, progress)
        if not options.codec_on_demand:
            codec.get()
        quantization = choose_quantization(options, device, folder)
        network = load_model(folder, device, options.dtype, quantization, progress)
        tokenizer = HiggsTokenizer(folder, network.config)
        slots = options.max_running or DEFAULT_SLOTS[device.type]
        try:
            engine = Engine(
                network,
                slots=slots,
                max_len=options.max_context,
                prefix_folder=network.prefix_folder,
            )
        except (MemoryError, RuntimeError) as error:
            raise LoadError(
                f"No memory for {slots} utterances of {options.max_context} positions at once: lower --max-running or "
                f"--max-context.",
                f"内存不足：--max-running {slots}，--max-context {options.max_context}，请调小其一。",
            ) from error
        info = ModelInfo(
            name=options.model_path,
            device=str(device),
            features=frozenset(Feature),
            # The other half is for what is read: a request that asks for no length fits in a short context, too.
            max_new_tokens=min(options.max_new_tokens, engine.max_len // 2),
            dtype=str(network.dtype).removeprefix("torch.") if quantization == "none" else quantization,
            max_running=slots,
            note=CPU_NOTE[quantization != "none"] if device.type == "cpu" else None,
            extra={"max_context": engine.max_len},
        )
        form: AudioForm = "template" if network.config.layout == "native" else "reference"
        return cls(engine, tokenizer, codec, info, form, options.guard)

    def check(self, script: Script) -> None:
        """Raises InvalidRequest with numbers where a chunk does not fit the context, BadAudio for a broken clip."""
        clips = [self._clips.of(voice) for voice in script.voices]
        for index in range(len(script.chunks)):
            self._take(replace(script, context_chunks=0), index, clips, {})

    def speak(self, script: Script, cancellation: Cancellation) -> Iterator[AudioChunk]:
        """Chunk by chunk, what was spoken last staying in the prompt."""
        clips = [self._clips.of(voice, again=True) for voice in script.voices]
        spoken: dict[int, Codes] = {}
        count = len(script.chunks)
        ended: FinishReason = "stop"
        for index in range(count):
            take = self._fit(script, index, clips, spoken)
            frames: list[Codes] = []
            for piece in self._perform(take, cancellation):
                if piece.codes is not None:
                    frames.append(piece.codes)
                if piece.finish_reason is not None:
                    # What cut any chunk short is what the whole is reported as.
                    ended = piece.finish_reason if ended == "stop" else ended
                    piece = replace(piece, finish_reason=ended if index + 1 == count else None)
                yield replace(piece, chunk=index, chunks=count)
            spoken[index] = np.concatenate(frames)

    def generate_codes(self, prompt: str, reference_codes: Sequence[Codes], sampling: SamplingParams) -> Codes:
        """Delayed rows [rows, codebooks] for a literal prompt, every guard off."""
        runs = self._tokenizer.runs(prompt, reference_codes)
        with self._engine.submit(runs, sampling, repeat_limit=None) as handle:
            for _ in handle:
                pass
            return handle.rows

    def trouble(self) -> NotReady | None:
        """The engine's."""
        return self._engine.trouble

    def stats(self) -> BackendStats:
        """Engine, clips and the device's memory."""
        gpu = torch.cuda.memory_reserved(self.info.device) if self.info.device.startswith("cuda") else None
        return BackendStats(self._engine.stats(), self._clips.hits, self._clips.misses, gpu)

    def close(self) -> None:
        """Ends the engine and the codec; what is being spoken ends with Cancelled."""
        self._engine.close()
        self._codec.close()

    # --- one chunk --------------------------------------------------------------------------------------------------

    def _fit(self, script: Script, index: int, clips: list[Codes], spoken: dict[int, Codes]) -> Take:
        """As much of the context as fits, down to none.

        It leaves room for a slow reader where a clip holds the voice anyway. Where only the context does, room for what
        the text usually takes is enough.
        """
        usual = math.ceil(_SPARE * usual_seconds(script.chunks[index]) * FRAMES_PER_SECOND)
        for kept in range(min(script.context_chunks, index), 0, -1):
            take = self._take(replace(script, context_chunks=kept), index, clips, spoken, checked=False)
            room, needed = self._room(take), self._needed(take)
            if needed <= room:
                return take
            if not script.voices and usual <= room:
                return _within(take, room)
        return self._take(replace(script, context_chunks=0), index, clips, spoken)

    def _take(
        self, script: Script, index: int, clips: list[Codes], spoken: dict[int, Codes], *, checked: bool = True
    ) -> Take:
        prompt = compose_chunk(script, index, audio_form=self._form)
        voices = [clips[number] for number in prompt.clips]
        runs = self._tokenizer.runs(prompt.text, [*voices, *(spoken[number] for number in prompt.context)])
        # The row that begins the answer is not part of the prefix.
        prefix_len = positions_of(self._tokenizer.runs(prompt.prefix, voices)) - 1
        budget = None
        if self._guard:
            budget = math.ceil(self._guard * slow_seconds(script.chunks[index]) * FRAMES_PER_SECOND)
        take = Take(runs, prefix_len, script.sampling, budget)
        room = self._room(take)
        if self._needed(take) <= room < (script.sampling.max_new_tokens or 0):
            # The frame budget ends it before the context does, so asking for more than fits is no error.
            return _within(take, room)
        if checked:
            self._engine.check_room(positions_of(runs), script.sampling)
        return take

    def _room(self, take: Take) -> int:
        """Rows the context has for the answer; the one that begins it stands in the prompt and counts as the first."""
        return self._engine.max_len - positions_of(take.runs) + 1

    def _needed(self, take: Take) -> int:
        """Rows the answer can take at most."""
        most = take.sampling.max_new_tokens or 0
        return most if take.frame_budget is None else min(most, take.frame_budget + 8)

    def _perform(self, take: Take, cancellation: Cancellation) -> Iterator[AudioChunk]:
        """A chunk wherever there is sound, and the last one: threads that wake for each frame outweigh a GPU's step."""
        silence = SilenceGuard() if self._guard else SilenceGuard(None)
        options = {} if self._guard else {"repeat_limit": None}
        with (
            self._codec.worker().open() as sound,
            self._engine.submit(
                take.runs, take.sampling, prefix_len=take.prefix_len, frame_budget=take.frame_budget, **options
            ) as handle,
        ):
            cancellation.on_cancel(handle.cancel)
            cancellation.on_cancel(sound.cancel)
            # Codes even where there were none: a model that ends at once has spoken zero frames.
            unheard = [np.zeros((0, handle.rows.shape[1]), np.int64)]
            heard = given = 0

            def piece(samples: Samples, finish_reason: FinishReason | None = None) -> AudioChunk:
                nonlocal heard, given
                heard += len(samples)
                codes = np.concatenate(unheard)
                del unheard[1:]
                if silence.tripped:  # what nobody hears is no part of the answer, nor of the next chunk's prompt
                    codes = codes[: max(0, heard // BLOCK - given)]
                given += len(codes)
                return AudioChunk(samples, codes=codes, finish_reason=finish_reason)

            sound.on_ready(handle.nudge)
            while (frames := handle.take(sound.wanted)) is not None:
                sound.push(frames)
                unheard.append(frames)
                samples = silence.feed(sound.ready())
                if silence.tripped:
                    yield piece(samples, "guard")
                    return
                if len(samples):
                    yield piece(samples)
            sound.finish()
            for decoded in sound:
                samples = silence.feed(decoded)
                if silence.tripped:
                    yield piece(samples, "guard")
                    return
                if len(samples):
                    yield piece(samples)
            yield piece(silence.rest(), handle.finish_reason or "stop")


class CodecOnDemand:
    """The codec and its thread, loaded when the first sound needs them (or at start, by asking for it)."""

    def __init__(self, model: str, device: torch.device, progress: Progress) -> None:
        self._model = model
        # MPS lacks some of the codec's operations.
        self._device = "cpu" if device.type == "mps" else str(device)
        self._progress = progress
        self._lock = threading.Lock()
        self._codec: HiggsCodec | None = None
        self._worker: CodecWorker | None = None

    def get(self) -> HiggsCodec:
        """Raises LoadError where it cannot be had."""
        with self._lock:
            if self._codec is None:
                folder = resolve(self._model, CODEC_FILES, flag="--audio-tokenizer-path", progress=self._progress)
                self._codec = load_codec(folder, self._device)
            return self._codec

    def worker(self) -> CodecWorker:
        """The thread that decodes for everybody."""
        codec = self.get()
        with self._lock:
            if self._worker is None:
                # On a CPU a batch gains nothing, and one window at a time keeps a seed's samples the same to the bit.
                self._worker = CodecWorker(codec, max_batch=8 if codec.device.type == "cuda" else 1)
            return self._worker

    def close(self) -> None:
        """Ends the thread."""
        with self._lock:
            if self._worker is not None:
                self._worker.close()


def codec_of(folder: Path, options: LoadOptions) -> str:
    """The codec's folder or hub id: the one asked for, else the one beside the model, else the default."""
    own = folder / OWN_CODEC
    return str(own) if options.audio_tokenizer_path == DEFAULT_CODEC and own.is_dir() else options.audio_tokenizer_path
