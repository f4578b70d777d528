"""The seams: what a backend gives the synthesizer, and what a network gives the engine.

Imports no torch: tensors appear here as names only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, final

import numpy as np
import numpy.typing as npt

from higgs_server.telemetry import Tally
from higgs_server.types import AudioChunk, Cancellation, ModelInfo, NotReady, Script

if TYPE_CHECKING:
    import torch


@final
@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine does at the moment, for metrics. Counts are since its start; a Tally goes on counting."""

    slots: int
    running: int
    waiting: int
    rows: int
    """Rows drawn and read, of all sequences."""
    step_seconds: Tally
    """Rounds with a decode step: prefill pieces, step, reading. What a running utterance waits for its next row."""
    batches: Tally
    """Sequences in a decode step."""
    prefix_hits: int
    prefix_misses: int
    prefixes: int
    """Kept at present."""
    prefix_bytes: int


@final
@dataclass(frozen=True, slots=True)
class BackendStats:
    """What a backend with an engine does at the moment, for metrics."""

    engine: EngineStats
    clip_hits: int
    """Reference clips that were codec frames already."""
    clip_misses: int
    gpu_bytes: int | None = None
    """Device memory this process holds; None without a GPU."""


class Backend(Protocol):
    """One loaded model, as the synthesizer sees it. Methods may be called from many threads at once."""

    info: ModelInfo

    def check(self, script: Script) -> None:
        """Raises Unsupported (or another SpeechError) if this script cannot be spoken, before any sound."""

    def speak(self, script: Script, cancellation: Cancellation) -> Iterator[AudioChunk]:
        """Speaks. The last chunk carries the finish reason. Raises Cancelled soon after a cancellation."""

    def trouble(self) -> NotReady | None:
        """What keeps it from speaking at present; None while all is well."""

    def stats(self) -> BackendStats | None:
        """A snapshot; None where no engine runs."""

    def close(self) -> None:
        """Stops threads and frees memory; what is being spoken ends with Cancelled."""


@dataclass(frozen=True, slots=True)
class TextRun:
    """Consecutive text tokens of a prompt: ids [n]."""

    token_ids: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class AudioRun:
    """Consecutive audio rows of a prompt, delay pattern applied: rows [n, codebooks]."""

    rows: npt.NDArray[np.int64]


Run = TextRun | AudioRun


class FrameModel(Protocol):
    """A network that predicts the next audio row, as the runner sees it.

    The KV cache is one tensor [layers, 2, slots, kv_heads, max_len, head_dim] and a batch row is a slot. No call waits
    for the device.
    """

    num_codebooks: int
    codebook_size: int
    """Codes a codebook has, stream-BOS and stream-EOS included (1026)."""
    stream_bos_id: int
    stream_eos_id: int
    max_positions: int
    device: torch.device
    dtype: torch.dtype

    def new_kv_cache(self, slots: int, max_len: int) -> torch.Tensor:
        """A zeroed cache [layers, 2, slots, kv_heads, max_len, head_dim]."""

    def prefill(self, kv_cache: torch.Tensor, slot: int, start: int, runs: Sequence[Run]) -> torch.Tensor:
        """Writes the runs into `slot` from position `start` on (positions before it are in the cache already).

        Returns the logits after the last position, float32 [codebooks, codebook_size].
        """

    def decode(self, kv_cache: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor, max_len: int) -> torch.Tensor:
        """One decode step for slots 0 … B-1.

        rows: int64 [B, codebooks], the rows sampled last; positions: int64 [B], where each is written; max_len: the
        length of cache to look at, more than any position in use. A row that is not in use stands at position 0 and
        its result means nothing. Returns logits float32 [B, codebooks, codebook_size].
        """

    @property
    def text_rows(self) -> int:
        """Rows that `read_text` takes at most; 0 where the model has no such call."""

    def read_text(self, kv_cache: torch.Tensor, token_ids: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """Like `prefill` of a run of text, for a captured graph: token_ids int64 [n], place int64 [3] on the device.

        place: the slot, the position of the first token, and how many of the n there are; those behind them only fill
        up. What is returned means nothing.
        """


class Codec(Protocol):
    """Audio tokenizer: PCM <-> codec frames."""

    sampling_rate: int
    hop_length: int
    """Samples a frame (960)."""
    num_codebooks: int
    context_frames: int
    """Frames of context a window needs on each side to equal the whole decode (10)."""

    def encode(self, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """Mono float32 [n] at sampling_rate -> codes [frames, codebooks]."""

    def decode(self, codes: npt.NDArray[np.int64], left: int = 0, right: int = 0) -> npt.NDArray[np.float32]:
        """Codes [batch, frames, codebooks] -> float32 [batch, (frames - left - right) * hop_length].

        The samples of all frames but `left` and `right` of them at the ends, which are context.
        """
