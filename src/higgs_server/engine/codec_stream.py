"""From frames that arrive one by one to PCM: overlapping windows, decoded in a thread of their own.

Knows frames and samples; no model, no text, no HTTP. The codec hears neighbours on both sides of a frame, so each
window carries context on both sides that is not heard itself: joined, the samples equal the whole decode.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from higgs_server.engine.interface import Codec
from higgs_server.types import Cancelled, GenerationFailed, Samples

logger = logging.getLogger(__name__)

Frames = npt.NDArray[np.int64]
"""[n, codebooks], without delay."""

GROWTH = 1.5
"""Each window brings this much more than the one before: none runs dry while frames come 1.5 times as fast as sound."""


@dataclass(frozen=True, slots=True)
class Window:
    """Frames to decode together, [n, codebooks]; `left` and `right` of them are context."""

    codes: Frames
    left: int
    right: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Windows of one shape can be decoded in one batch."""
        return len(self.codes), self.left, self.right


def decode_whole(codec: Codec, codes: Frames) -> Samples:
    """What a stream of windows joins up to: the decode of all frames [n, codebooks] at once.

    Beyond the start is silence. Beyond the end, where silence would hiss, the last frame is repeated as context.
    """
    if not len(codes):
        return np.zeros(0, dtype=np.float32)
    longer = _repeat_last(codes, codec.context_frames)
    samples: Samples = codec.decode(longer[None], 0, codec.context_frames)[0]
    return samples


def _repeat_last(codes: Frames, times: int) -> Frames:
    return np.concatenate([codes, np.repeat(codes[-1:], times, axis=0)])


class FrameWindower:
    """Cuts one stream of frames into windows; pure.

    context: frames of context on each side. first: new frames of the first window, small for an early first sound.
    largest: new frames of the windows later on; the larger, the less is decoded twice.
    """

    def __init__(self, context: int, first: int, largest: int) -> None:
        self._context = context
        self._size = first
        self._largest = max(first, largest)
        self._left = 0
        self._kept: Frames | None = None  # from the context left of the first new frame on

    @property
    def wanted(self) -> int:
        """Frames that complete the next window."""
        return self._left + self._size + self._context - (0 if self._kept is None else len(self._kept))

    def push(self, frames: Frames) -> list[Window]:
        """Takes more frames [n, codebooks]; returns the windows that are complete, oldest first."""
        kept = frames.copy() if self._kept is None else np.concatenate([self._kept, frames])
        windows = []
        while len(kept) >= self._left + self._size + self._context:
            done = self._left + self._size
            windows.append(Window(kept[: done + self._context], self._left, self._context))
            self._left = min(self._context, done)
            kept = kept[done - self._left :]
            self._size = min(math.ceil(self._size * GROWTH), self._largest)
        self._kept = kept
        return windows

    def finish(self) -> list[Window]:
        """No more frames: returns what is left as one window, or nothing."""
        kept, self._kept = self._kept, None
        if kept is None or len(kept) == self._left:
            return []
        return [Window(_repeat_last(kept, self._context), self._left, self._context)]


class CodecStream:
    """One utterance on its way from frames to samples.

    One thread pushes and finishes; it may read as well, with `ready` between frames and by iterating at the end. Reads
    raise what went wrong: GenerationFailed, or Cancelled after `cancel` or when the worker closes. As a context
    manager it cancels what is not over on leaving.
    """

    def __init__(self, worker: CodecWorker, windower: FrameWindower) -> None:
        self._worker = worker
        self._windower = windower
        self._on_ready: Callable[[], None] = lambda: None
        self._changed = threading.Condition()
        self._samples: list[Samples] = []
        self._undecoded = 0  # windows submitted and not delivered
        self._finished = False
        self._failure: BaseException | None = None

    @property
    def wanted(self) -> int:
        """Frames with which the next window can be decoded: pushing fewer makes no sound."""
        return self._windower.wanted

    def on_ready(self, action: Callable[[], None]) -> None:
        """Registers what is to be done, by another thread, whenever `ready` has samples or raises."""
        self._on_ready = action

    def push(self, frames: Frames) -> None:
        """Takes more frames [n, codebooks]. Never waits for the codec."""
        self._submit(self._windower.push(frames), finished=False)

    def finish(self) -> None:
        """There will be no more frames; iteration ends when all of them are decoded."""
        self._submit(self._windower.finish(), finished=True)

    def ready(self) -> Samples:
        """The samples decoded since the last read, possibly none. Does not wait."""
        with self._changed:
            return self._take()

    def __iter__(self) -> CodecStream:
        return self

    def __next__(self) -> Samples:
        """Waits for samples; ends after `finish` when there are no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._samples or self._failure or self._over)
            samples = self._take()
        if not len(samples):
            raise StopIteration
        return samples

    def __enter__(self) -> CodecStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Drops what is not decoded yet. Does nothing once it is over."""
        self.fail(Cancelled())

    def deliver(self, samples: Samples) -> None:
        """For the worker: the samples of the oldest undelivered window."""
        with self._changed:
            if self._failure is not None:
                return
            self._samples.append(samples)
            self._undecoded -= 1
            self._changed.notify_all()
            over = self._over
        self._on_ready()
        if over:
            self._worker.forget(self)

    def fail(self, failure: BaseException) -> None:
        """For the worker: nothing more will come. Samples not read yet are lost."""
        with self._changed:
            if self._failure is not None or self._over:
                return
            self._failure = failure
            self._samples.clear()
            self._changed.notify_all()
        self._on_ready()
        self._worker.forget(self)

    @property
    def _over(self) -> bool:
        return self._finished and self._undecoded == 0

    def _submit(self, windows: list[Window], finished: bool) -> None:
        with self._changed:
            self._undecoded += len(windows)
            self._finished = finished
            self._changed.notify_all()
            over = self._over
        if windows:
            self._worker.submit(self, windows)
        elif over:
            self._worker.forget(self)

    def _take(self) -> Samples:
        if self._failure is not None:
            raise self._failure
        samples, self._samples = self._samples, []
        return np.concatenate(samples) if samples else np.zeros(0, dtype=np.float32)


class CodecWorker:
    """One thread that decodes the windows of all streams, oldest first, windows of one shape in one batch.

    first and largest: see FrameWindower. max_batch: windows decoded at once; 1 where the last bit of a sample must not
    depend on who else is speaking, for a batch adds up in another order.
    """

    def __init__(self, codec: Codec, *, first: int = 2, largest: int = 32, max_batch: int = 8) -> None:
        self._codec = codec
        self._first, self._largest, self._max_batch = first, largest, max_batch
        self._changed = threading.Condition()
        self._pending: deque[tuple[CodecStream, Window]] = deque()
        self._streams: set[CodecStream] = set()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="codec", daemon=True)
        self._thread.start()

    def open(self) -> CodecStream:
        """A stream for one utterance. Raises Cancelled once the worker is closed."""
        stream = CodecStream(self, FrameWindower(self._codec.context_frames, self._first, self._largest))
        with self._changed:
            if self._closed:
                raise Cancelled
            self._streams.add(stream)
        return stream

    def close(self) -> None:
        """Ends the thread after the batch it is at; streams that are not over raise Cancelled."""
        with self._changed:
            self._closed = True
            streams = list(self._streams)
            self._changed.notify_all()
        for stream in streams:
            stream.cancel()
        self._thread.join()

    def submit(self, stream: CodecStream, windows: list[Window]) -> None:
        """For streams: windows to decode, in order."""
        with self._changed:
            if stream in self._streams:
                self._pending.extend((stream, window) for window in windows)
                self._changed.notify_all()

    def forget(self, stream: CodecStream) -> None:
        """For streams: nobody waits for this one any more."""
        with self._changed:
            self._streams.discard(stream)
            self._pending = deque(entry for entry in self._pending if entry[0] is not stream)

    def _run(self) -> None:
        while True:
            try:
                while batch := self._next_batch():
                    self._decode(batch)
                return
            except Exception as error:
                logger.exception("the codec's thread failed; it begins anew")
                with self._changed:
                    streams = list(self._streams)
                for stream in streams:
                    stream.fail(GenerationFailed(error))

    def _next_batch(self) -> list[tuple[CodecStream, Window]]:
        """The oldest window and others of its shape; empty when the worker is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closed)
            if self._closed:
                return []
            shape = self._pending[0][1].shape
            batch: list[tuple[CodecStream, Window]] = []
            left: deque[tuple[CodecStream, Window]] = deque()
            waiting: set[CodecStream] = set()
            for stream, window in self._pending:
                # A stream's windows stay in order: none overtakes one that is left.
                if window.shape == shape and len(batch) < self._max_batch and stream not in waiting:
                    batch.append((stream, window))
                else:
                    left.append((stream, window))
                    waiting.add(stream)
            self._pending = left
            return batch

    def _decode(self, batch: list[tuple[CodecStream, Window]]) -> None:
        first = batch[0][1]
        try:
            decoded = self._codec.decode(np.stack([window.codes for _, window in batch]), first.left, first.right)
        except Exception as error:
            if len(batch) > 1:  # one stream's fault is not the others'
                for entry in batch:
                    self._decode([entry])
                return
            logger.exception("the codec failed to decode a window of %d frames", len(first.codes))
            batch[0][0].fail(GenerationFailed(error))
            return
        for (stream, _), samples in zip(batch, decoded, strict=True):
            stream.deliver(samples)
