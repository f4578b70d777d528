"""Who is in which slot, and what the next step does.

Pure bookkeeping: knows no tensors, no threads and no clock. Requests are admitted in the order they came, into the
lowest free slot, so that the decode batch is slots 0 to B-1 with B small.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from higgs_server.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Piece:
    """Positions `start` to `stop` of a sequence's prompt, prefilled in one go."""

    sequence: Sequence
    start: int
    stop: int

    @property
    def completes_prefix(self) -> bool:
        """Whether the shared prefix stands in the cache after it."""
        return self.stop == self.sequence.prefix_len

    @property
    def completes_prompt(self) -> bool:
        """Whether the first row can be drawn after it."""
        return self.stop == self.sequence.prompt_len


def bucket(needed: int, least: int, most: int) -> int:
    """`needed` rounded up to `least` times a power of two, at most `most`: there are few shapes to capture."""
    size = least
    while size < needed:
        size *= 2
    return min(size, most)


def buckets(least: int, most: int) -> list[int]:
    """Every `bucket` there is; none where there is nothing at most."""
    sizes: list[int] = []
    while sizes[-1:] != [most] and most > 0:
        sizes.append(bucket(sizes[-1] + 1 if sizes else 1, least, most))
    return sizes


class Scheduler:
    """Admits, batches and drops sequences.

    `prefill_budget` is how many prompt positions may be prefilled between two decode steps, and the length of the
    pieces a longer prompt is cut into: what a running stream waits at most when another one joins.
    """

    def __init__(self, slots: int, prefill_budget: int) -> None:
        self.prefill_budget = prefill_budget
        self.limit = slots
        """Sequences that may run at once: all slots, unless memory has run out."""
        self._slots: list[Sequence | None] = [None] * slots
        self._running: list[Sequence] = []
        self._waiting: deque[Sequence] = deque()

    @property
    def running(self) -> tuple[Sequence, ...]:
        """Sequences that have a slot, longest admitted first."""
        return tuple(self._running)

    @property
    def waiting(self) -> tuple[Sequence, ...]:
        """Sequences without a slot, next first."""
        return tuple(self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence."""
        self._waiting.append(sequence)

    def admit(self) -> list[Sequence]:
        """Gives free slots, lowest first, to those who wait; returns the newly admitted."""
        admitted = []
        for slot, occupant in enumerate(self._slots):
            if not self._waiting or len(self._running) >= self.limit:
                break
            if occupant is None:
                sequence = self._waiting.popleft()
                sequence.slot = slot
                self._slots[slot] = sequence
                self._running.append(sequence)
                admitted.append(sequence)
        return admitted

    def remove(self, sequence: Sequence) -> int | None:
        """Forgets a sequence wherever it is; returns the slot that became free, None if it had none."""
        slot = sequence.slot
        if slot is None:
            if sequence in self._waiting:
                self._waiting.remove(sequence)
            return None
        sequence.slot = None
        self._slots[slot] = None
        self._running.remove(sequence)
        return slot

    def pieces(self) -> list[Piece]:
        """The pieces of prompts to prefill before the next decode step: at least one, else within the budget."""
        pieces: list[Piece] = []
        budget = self.prefill_budget
        for sequence in self._running:
            start = sequence.prefilled
            while start < sequence.prompt_len:
                stop = sequence.next_cut(start, self.prefill_budget)
                if pieces and stop - start > budget:
                    return pieces
                pieces.append(Piece(sequence, start, stop))
                budget -= stop - start
                start = stop
        return pieces

    def drawing(self) -> list[Sequence]:
        """The sequences the next decode step draws a row for."""
        return [sequence for sequence in self._running if sequence.drawing]
