"""One utterance's state: its prompt, the rows drawn so far, the frames they complete, and how it ended.

Knows nothing of tensors, of other utterances or of threads. Rows are numbered from 0, the row of stream-BOS codes that
begins every utterance. Codebook k lags k rows, so frame f is read along the diagonal from row f + 1 on, and row r
completes frame r - codebooks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from higgs_server.engine.guard import REPEAT_LIMIT, Frame, RepetitionGuard
from higgs_server.engine.interface import AudioRun, FrameModel, Run, TextRun
from higgs_server.types import FinishReason, SamplingParams

Frames = npt.NDArray[np.int64]
"""Frames without delay, codes only, [frames, codebooks]."""


@dataclass(frozen=True, slots=True)
class CodeFormat:
    """How a model writes frames: eight codebooks, and the two codes in each that are not sound."""

    codebooks: int
    bos: int
    eos: int

    @classmethod
    def of(cls, model: FrameModel) -> CodeFormat:
        """The format `model` was trained on."""
        return cls(model.num_codebooks, model.stream_bos_id, model.stream_eos_id)


def run_length(run: Run) -> int:
    """Positions a run takes in the context."""
    return len(run.token_ids) if isinstance(run, TextRun) else len(run.rows)


def positions_of(runs: Iterable[Run]) -> int:
    """Positions a prompt takes in the context."""
    return sum(map(run_length, runs))


def slice_runs(runs: Iterable[Run], start: int, stop: int) -> list[Run]:
    """The part of a prompt at positions `start` to `stop`, cut inside runs where need be."""
    part: list[Run] = []
    offset = 0
    for run in runs:
        length = run_length(run)
        first, last = max(start - offset, 0), min(stop - offset, length)
        if first < last:
            whole = (first, last) == (0, length)
            if isinstance(run, TextRun):
                part.append(run if whole else TextRun(run.token_ids[first:last]))
            else:
                part.append(run if whole else AudioRun(run.rows[first:last]))
        offset += length
    return part


class Sequence:
    """An utterance from its prompt to its end. The prompt ends with row 0.

    `max_new_tokens` counts rows, the first among them, as the reference implementation does. `frame_budget` is the
    most frames its text can reasonably need (None: no such limit); reaching it is reported as "guard".
    """

    def __init__(
        self,
        runs: Iterable[Run],
        sampling: SamplingParams,
        code_format: CodeFormat,
        *,
        prefix_len: int = 0,
        frame_budget: int | None = None,
        repeat_limit: int | None = REPEAT_LIMIT,
    ) -> None:
        if sampling.seed is None or sampling.max_new_tokens is None:
            raise ValueError("seed and max_new_tokens must be settled before generation")
        self.runs: tuple[Run, ...] = tuple(runs)
        last = self.runs[-1] if self.runs else None
        if not (isinstance(last, AudioRun) and (last.rows[-1:] == code_format.bos).all()):
            raise ValueError("a prompt must end with the row of stream-BOS codes that begins the answer")
        self.sampling = sampling
        self.format = code_format
        self.prompt_len = positions_of(self.runs)
        """Positions to prefill, row 0 included."""
        self.prefix_len = prefix_len
        """The leading positions that other utterances share: system message and reference clips."""
        if not 0 <= prefix_len < self.prompt_len:
            raise ValueError(f"a prefix of {prefix_len} positions in a prompt of {self.prompt_len}")
        self.row_limit = sampling.max_new_tokens
        self._limit_reason: FinishReason = "length"
        if frame_budget is not None and frame_budget + code_format.codebooks < self.row_limit:
            self.row_limit = max(frame_budget, 0) + code_format.codebooks
            self._limit_reason = "guard"

        self.slot: int | None = None
        self.prefilled = 0
        """Positions whose keys and values are in the cache, or on their way there."""
        self.drawn = 1
        """Rows drawn on the device so far, read or not."""
        self.finish_reason: FinishReason | None = None

        self._rows: list[list[int]] = []
        self._guard = RepetitionGuard(repeat_limit)
        self._sound_over = False
        self.append(last.rows[-1].tolist())

    @property
    def prefilling(self) -> bool:
        """Whether part of the prompt is still to come."""
        return self.prefilled < self.prompt_len

    @property
    def drawing(self) -> bool:
        """Whether the next decode step draws a row for it."""
        return not self.prefilling and self.finish_reason is None and self.drawn < self.row_limit

    @property
    def position(self) -> int:
        """Where the next step writes: the next piece of the prompt, or the row drawn last."""
        return self.prefilled if self.prefilling else self.prompt_len + self.drawn - 2

    def next_cut(self, start: int, piece: int) -> int:
        """Where the piece of the prompt from `start` on ends.

        It depends on the prompt alone, never on what else is going on, nor on whether the prefix was in the cache:
        kernels round differently at different lengths, and a seed must give the same audio in any company.
        """
        end = self.prefix_len if start < self.prefix_len else self.prompt_len
        return min(start + piece, end)

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """All rows so far, delay pattern applied, [rows, codebooks]."""
        return np.array(self._rows, dtype=np.int64)

    def append(self, row: list[int]) -> list[Frame]:
        """Takes the next row; returns the frames that may be heard now, often none.

        The sound ends before the first frame that holds an end code: the reference cuts the column of end codes off
        as well, and what stands beside one is not speech. A stray stream-BOS is read as the last code, as there.
        """
        heard: list[Frame] = []
        codebooks, bos, eos = self.format.codebooks, self.format.bos, self.format.eos
        self._rows.append(row)
        if len(self._rows) > codebooks and not self._sound_over:
            frame = [row[codebook] for codebook, row in enumerate(self._rows[-codebooks:])]
            self._sound_over = eos in frame
            if not self._sound_over:
                heard = self._guard.feed(tuple(bos - 1 if code == bos else code for code in frame))
        if row.count(eos) == codebooks:
            self.finish_reason = "stop"
        elif self._guard.tripped:
            self.finish_reason = "guard"
        elif len(self._rows) == self.row_limit:
            self.finish_reason = self._limit_reason
        if self.finish_reason in ("stop", "length"):
            heard += self._guard.rest()
        return heard
