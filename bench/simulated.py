"""A backend whose step takes a fixed time whatever runs beside it, as on a device that waits for its memory.

For measuring what is around a model. Its text is how many frames it speaks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from higgs_server.backends import BACKENDS, BackendEntry
from higgs_server.engine.interface import BackendStats
from higgs_server.types import AudioChunk, Cancellation, Feature, LoadOptions, ModelInfo, Progress, Script

STEP_SECONDS = 0.02
FRAME = np.zeros(960, np.float32)


class Simulated:
    """Implements `engine.interface.Backend`."""

    def __init__(self, slots: int) -> None:
        features = frozenset({Feature.SINGLE_SPEAKER, Feature.STREAMING})
        self.info = ModelInfo("simulated", "cpu", features, 2048, max_running=slots)

    def check(self, script: Script) -> None:
        """Takes anything."""

    def speak(self, script: Script, cancellation: Cancellation) -> Iterator[AudioChunk]:
        """The first frame at once, each further one a step later."""
        frames = int(script.text.strip("."))
        for number in range(frames):
            if number:
                time.sleep(STEP_SECONDS)
            yield AudioChunk(FRAME, finish_reason="stop" if number + 1 == frames else None)

    def trouble(self) -> None:
        """None ever."""

    def stats(self) -> BackendStats | None:
        """No engine."""
        return None

    def close(self) -> None:
        """Nothing to free."""


def simulate() -> None:
    """From here on, `embedded` means this backend in this process."""
    BACKENDS["embedded"] = BackendEntry("simulated")


def load(options: LoadOptions, progress: Progress) -> Simulated:
    """As every backend's."""
    progress("ready", 1.0)
    return Simulated(options.max_running or 4)
