"""Decode steps captured once for each shape, and launched as a whole from then on.

A step is hundreds of kernels, most of which take less time than their launch; a captured step is one launch. Knows no
model, no sampler and no slots: a step is a function of a few host integers which for the same integers does the same
work on the same tensors, asks no tensor for a value, and returns a tensor.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch

logger = logging.getLogger(__name__)

MOST_GRAPHS = 128
"""Captured steps that are kept: each takes some memory of the device and of the driver."""


class Capture(Protocol):
    """Turns work on a device into a graph of it."""

    def warm_up(self, work: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Does the work once as it will be captured: what is loaded or allocated at its first time is there then."""

    def capture(self, work: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Records the work without doing it. Returns what does it, and gives its result, the same tensor each time."""


class CapturedSteps:
    """A step that is captured behind its first run for some integers.

    The first run is a real one and its result counts, so nothing has to be undone. Where a capture fails, a warning
    says so once, and every step from then on runs as it is.
    """

    def __init__(self, step: Callable[..., torch.Tensor], capture: Capture) -> None:
        self._step = step
        self._capture: Capture | None = capture
        self._graphs: OrderedDict[tuple[int, ...], Callable[[], torch.Tensor]] = OrderedDict()

    def __call__(self, *shape: int) -> torch.Tensor:
        """What the step returns, valid until the next call."""
        if self._capture is None:
            return self._step(*shape)
        if (graph := self._graphs.get(shape)) is not None:
            self._graphs.move_to_end(shape)
            return graph()
        work = partial(self._step, *shape)
        result = self._capture.warm_up(work)
        try:
            self._graphs[shape] = self._capture.capture(work)
        except Exception as error:
            logger.warning("a decode step could not be captured: all run without CUDA graphs, slower", exc_info=error)
            self._capture = None
            self._graphs.clear()
        if len(self._graphs) > MOST_GRAPHS:
            self._graphs.popitem(last=False)
        return result


class CudaCapture:
    """CUDA graphs that share memory for what is in between: one runs at a time, in the order of the calls."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, work: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Like Capture's."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = work()
        current.wait_stream(self._stream)
        return result

    def capture(self, work: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Like Capture's."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            # The codec's thread goes on meanwhile, and may allocate and wait.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                result = work()
            finally:
                graph.capture_end()

        def replay() -> torch.Tensor:
            graph.replay()
            return result

        return replay
