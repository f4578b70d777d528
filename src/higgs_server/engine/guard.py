"""The guard against endless speech: sees when frames only repeat themselves.

Knows frames and nothing else: not why they repeat, nor what they sound like. A frame whose eight codes all equal those
of the frame 1 to 8 places before it is a repetition; speech does not do that for long, a model that lost its way does.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

Frame = tuple[int, ...]
"""The codes of one frame. They come one by one, and for eight numbers an array's calls outweigh what is done."""

LONGEST_CYCLE = 8
"""Cycles of up to this many frames count as repetition (0.32 s)."""

REPEAT_LIMIT = 50
"""Repetition for this many frames (2 s) ends the speech."""

KEPT_REPEATS = 10
"""Repeated frames that are let through at once (0.4 s): a pause is no reason to hold a stream up."""


def repeated_tail(frames: npt.NDArray[np.int64], longest_cycle: int = LONGEST_CYCLE) -> int:
    """How many frames at the end of `frames` [n, codebooks] repeat a cycle of at most `longest_cycle` frames before."""
    longest = 0
    for cycle in range(1, min(longest_cycle, len(frames) - 1) + 1):
        same = (frames[cycle:] == frames[:-cycle]).all(axis=1)
        longest = max(longest, len(same) if same.all() else int(np.argmin(same[::-1])))
    return longest


class RepetitionGuard:
    """Passes frames on, withholds them while they repeat, and trips when they repeat for too long.

    What has been streamed cannot be taken back, so from the `kept`-th repeated frame on they are held until the
    repetition is broken (then all of them follow, nothing is lost) or the guard trips (then they are never heard).
    """

    def __init__(self, limit: int | None = REPEAT_LIMIT, kept: int = KEPT_REPEATS) -> None:
        """`limit` is in frames; None switches the guard off."""
        self.tripped = False
        self._limit = limit
        self._kept = kept
        self._recent: deque[Frame] = deque(maxlen=LONGEST_CYCLE)
        self._repeats = [0] * LONGEST_CYCLE
        self._withheld: list[Frame] = []

    def feed(self, frame: Frame) -> list[Frame]:
        """Takes the next frame; returns the frames that may be heard now."""
        if self._limit is None:
            return [frame]
        for back, before in enumerate(self._recent):
            self._repeats[back] = self._repeats[back] + 1 if before == frame else 0
        self._recent.appendleft(frame)
        tail = max(self._repeats)
        self._withheld.append(frame)
        if tail >= self._limit:
            self.tripped = True
        return [] if self.tripped or tail > self._kept else self.rest()

    def rest(self) -> list[Frame]:
        """Hands out the frames withheld so far: the speech goes on, or ended by itself."""
        withheld, self._withheld = self._withheld, []
        return withheld
