"""Faster or slower speech at the same pitch, by FFmpeg's atempo (overlapping windows). Knows nothing of encoders."""

from __future__ import annotations

from typing import Any

import numpy as np

from higgs_server.types import SAMPLING_RATE, InvalidRequest, Samples

SLOWEST, FASTEST = 0.25, 4.0
"""OpenAI's range of `speed`."""


class Tempo:
    """One utterance at another speed, as it comes. Speed 1 hands the samples through untouched.

    A few hundredths of a second stay inside until `finish`. Raises InvalidRequest for a speed out of range.
    """

    def __init__(self, speed: float) -> None:
        if not SLOWEST <= speed <= FASTEST:
            raise InvalidRequest(
                f"speed: {speed:g} is out of range. Use {SLOWEST:g} to {FASTEST:g}.",
                f"参数 speed 无效：{speed:g}，应在 {SLOWEST:g} 到 {FASTEST:g} 之间。",
                param="speed",
            )
        self._graph = None if speed == 1.0 else _graph(speed)
        self._fed = 0

    def feed(self, samples: Samples) -> Samples:
        """float32 [n] -> [m], what can be heard so far, possibly nothing."""
        if self._graph is None:
            return samples
        if len(samples):
            import av

            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(samples, np.float32)[np.newaxis], format="flt", layout="mono"
            )
            frame.sample_rate = SAMPLING_RATE
            frame.pts = self._fed
            self._fed += len(samples)
            self._graph.push(frame)
        return self._pull()

    def finish(self) -> Samples:
        """The rest. Nothing may be fed afterwards."""
        if self._graph is None or not self._fed:
            return np.zeros(0, np.float32)
        self._graph.push(None)
        return self._pull()

    def _pull(self) -> Samples:
        assert self._graph is not None
        pieces = [np.zeros(0, np.float32)]
        while True:
            try:
                pieces.append(self._graph.pull().to_ndarray()[0].copy())
            except (BlockingIOError, EOFError):
                return np.concatenate(pieces)


def _graph(speed: float) -> Any:
    """abuffer, atempo, abuffersink. Beyond 0.5 to 2 two filters share the work: below, atempo refuses; above, it
    leaves samples out instead of blending them."""
    from av.filter import Graph

    steps = 1 if 0.5 <= speed <= 2.0 else 2
    graph = Graph()
    # Threads would only be started and stopped for each of these small graphs.
    graph.threads = 1
    graph.link_nodes(
        graph.add_abuffer(sample_rate=SAMPLING_RATE, format="flt", layout="mono"),
        *(graph.add("atempo", f"{speed ** (1 / steps):.9f}") for _ in range(steps)),
        graph.add("abuffersink"),
    ).configure()
    return graph
