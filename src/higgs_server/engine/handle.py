"""What a client of the engine holds: one utterance being generated, as an iterator of its frames.

Knows no scheduling: the engine's thread delivers and ends, any other thread reads and cancels.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from higgs_server.engine.guard import Frame
from higgs_server.engine.sequence import Frames, Sequence
from higgs_server.types import Cancelled, FinishReason


class Handle:
    """Iterates over the new frames, int64 [n, codebooks] with n >= 1: whatever came since the last look.

    Iteration ends with the utterance, raises Cancelled after `cancel` (or when the engine closes), and raises the
    SpeechError that ended it if something failed. As a context manager it cancels what is not over on leaving. Who
    needs several frames at a time uses `take`: waking a thread for each costs more than the frame does.
    """

    def __init__(self, sequence: Sequence, on_cancel: Callable[[Sequence], None]) -> None:
        self._sequence = sequence
        self._on_cancel = on_cancel
        self._changed = threading.Condition()
        self._frames: list[Frame] = []
        self._wanted = 1
        self._nudged = False
        self._over = False
        self._failure: BaseException | None = None

    def __iter__(self) -> Handle:
        return self

    def __next__(self) -> Frames:
        frames = self.take(1)
        while frames is not None and not len(frames):
            frames = self.take(1)
        if frames is None:
            raise StopIteration
        return frames

    def take(self, wanted: int) -> Frames | None:
        """Waits for so many frames, for a nudge or for the end. Returns what came since the last look: fewer frames
        after a nudge, perhaps none, and before the end; more where nobody looked for long; None at the end.

        Raises as iteration does.
        """
        with self._changed:
            self._wanted = wanted
            self._changed.wait_for(lambda: len(self._frames) >= wanted or self._nudged or self._over)
            self._nudged = False
            if self._frames:
                frames, self._frames = self._frames, []
                return np.array(frames, dtype=np.int64)
            if self._failure is not None:
                raise self._failure
            return None if self._over else np.empty((0, self._sequence.format.codebooks), np.int64)

    def nudge(self) -> None:
        """Lets who waits in `take` look at something else, from any thread."""
        with self._changed:
            self._nudged = True
            self._changed.notify_all()

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    @property
    def finish_reason(self) -> FinishReason | None:
        """How it ended by itself: None while it runs, and where it was cancelled or failed."""
        with self._changed:
            return self._sequence.finish_reason if self._over and self._failure is None else None

    @property
    def rows(self) -> Frames:
        """All rows so far, delay pattern applied, [rows, codebooks]; the first is all stream-BOS."""
        return self._sequence.rows

    def cancel(self) -> None:
        """Ends the utterance; its slot is free by the next step. Does nothing once it is over."""
        if self.end(Cancelled()):
            self._on_cancel(self._sequence)

    def deliver(self, frames: list[Frame]) -> None:
        """For the engine: more frames."""
        with self._changed:
            if frames and not self._over:
                self._frames += frames
                if len(self._frames) >= self._wanted:
                    self._changed.notify_all()

    def end(self, failure: BaseException | None = None) -> bool:
        """For the engine: nothing more will come; frames not read yet are lost if it failed. False: it was over."""
        with self._changed:
            if self._over:
                return False
            self._over = True
            self._failure = failure
            if failure is not None:
                self._frames.clear()
            self._changed.notify_all()
            return True
