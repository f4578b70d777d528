"""The guard against endless silence: sees when nothing can be heard any more. Knows samples and nothing else."""

from __future__ import annotations

import numpy as np

from higgs_server.types import FRAMES_PER_SECOND, SAMPLING_RATE, Samples

SILENCE_LEVEL = 10 ** (-60 / 20)
"""A block whose loudest sample is below -60 dBFS is silent."""
BLOCK = SAMPLING_RATE // FRAMES_PER_SECOND
"""Samples judged together (40 ms, one codec frame)."""


class SilenceGuard:
    """Passes sound on, withholds silence while it lasts, and trips when it lasts too long.

    What has been streamed cannot be taken back, so silence beyond `kept` seconds is held until sound returns (then all
    of it follows, nothing is lost) or the guard trips after `limit` seconds (then it is never heard).
    """

    def __init__(self, limit: float | None = 4.0, kept: float = 0.4) -> None:
        """Seconds; a limit of None switches the guard off."""
        self.tripped = False
        self._limit = None if limit is None else int(limit * SAMPLING_RATE)
        self._kept = int(kept * SAMPLING_RATE)
        self._silent = 0
        self._withheld: list[Samples] = []

    def feed(self, samples: Samples) -> Samples:
        """Takes the next samples [n]; returns those that may be heard now."""
        if self._limit is None or self.tripped:
            return samples[:0] if self.tripped else samples
        heard: list[Samples] = []
        for start in range(0, len(samples), BLOCK):
            block = samples[start : start + BLOCK]
            if np.abs(block).max() >= SILENCE_LEVEL:
                heard += [*self._withheld, block]
                self._withheld, self._silent = [], 0
                continue
            self._silent += len(block)
            if self._silent >= self._limit:
                self.tripped = True
                self._withheld.clear()
                break
            (heard if self._silent <= self._kept else self._withheld).append(block)
        return np.concatenate(heard) if heard else samples[:0]

    def rest(self) -> Samples:
        """What is still withheld when the speech has ended by itself."""
        rest, self._withheld = self._withheld, []
        return np.concatenate(rest) if rest else np.zeros(0, np.float32)
