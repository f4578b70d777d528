"""What is known of a request, and numbers that cost nothing to keep. Knows no endpoint, no model and no exporter.

Whoever serves a request writes down here what it learns; the log, the metrics and the traces read it at the end.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from tqdm import tqdm

from higgs_server.types import SAMPLING_RATE, AudioChunk, FinishReason, Progress, SpeechError

log = logging.getLogger(__name__)

_BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}"


class Clock:
    """Seconds since the request arrived. `started` is the same moment in nanoseconds since 1970."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.started = time.time_ns()

    def seconds(self) -> float:
        """Elapsed so far."""
        return time.perf_counter() - self._start


@dataclass(slots=True)
class RequestRecord:
    """One request from its arrival on: whose it is and how it goes. Whoever learns something writes it down here."""

    id: str = "-"
    caller: str = "-"
    """Who shares one turn in the queue: the name of an API key, else the client's address."""
    clock: Clock = field(default_factory=Clock)
    deadline: float | None = None
    """Seconds after arrival from which on nobody waits for the answer; None for no end."""
    queued: float | None = None
    """Seconds it waited for its turn, None where it never had one."""
    first_audio: float | None = None
    """Seconds from arrival to the first sound."""
    audio_seconds: float = 0.0
    generating: float = 0.0
    """Seconds spent waiting for the model, without the queue and without a client that reads slowly."""
    finish_reason: FinishReason | None = None

    method: str = "-"
    """Of HTTP; WEBSOCKET for a session, SENTENCE for what is spoken in one."""
    path: str = "-"
    """As it was asked for, percent-encoded."""
    endpoint: str = "other"
    """The route's template: one of few, whatever clients ask for."""
    status: int | None = None
    """Of the answer, None where nobody was there to read one."""
    bytes: int = 0
    """Of the answer's body."""
    error: SpeechError | None = None
    """What went wrong, also where the answer had begun."""
    complete: bool = False
    """The answer was sent to its end."""
    total: float = 0.0
    """Seconds from arrival to the end, known then."""
    trace: Mapping[str, str] = field(default_factory=dict)
    """The client's `traceparent` and `tracestate` (W3C Trace Context)."""
    observers: tuple[Observer, ...] = ()

    @property
    def outcome(self) -> str:
        """`ok`, the error's code, or `cancelled`: the client did not wait for the end."""
        if self.error is not None:
            return self.error.code
        return "ok" if self.complete else "cancelled"

    @property
    def remaining(self) -> float | None:
        """Seconds until the deadline, below 0 once it has passed; None for no end."""
        return None if self.deadline is None else self.deadline - self.clock.seconds()

    @property
    def real_time_factor(self) -> float | None:
        """Seconds of generating for a second of sound; None without sound."""
        return self.generating / self.audio_seconds if self.audio_seconds else None

    def hear(self, piece: AudioChunk) -> None:
        """Notes a piece of sound that was made for this request."""
        if self.first_audio is None and len(piece.samples):
            self.first_audio = self.clock.seconds()
        self.audio_seconds += len(piece.samples) / SAMPLING_RATE
        self.finish_reason = piece.finish_reason or self.finish_reason

    def part(self, number: int) -> RequestRecord:
        """The record of one sentence of this session, with a clock of its own."""
        return RequestRecord(
            f"{self.id}.{number}",
            caller=self.caller,
            deadline=self.deadline,
            method="SENTENCE",
            path=self.path,
            endpoint=self.endpoint,
            trace=self.trace,
            observers=self.observers,
        )

    def end(self) -> None:
        """The request is over: everybody who watches is told. An observer that fails harms nobody."""
        self.total = self.clock.seconds()
        for observer in self.observers:
            try:
                observer(self)
            except Exception:
                log.exception("a request was not recorded")


Observer = Callable[[RequestRecord], None]
"""Called once at the end of a request, on the event loop: it must not wait for anything."""

current_request: ContextVar[RequestRecord] = ContextVar("current_request", default=RequestRecord())  # noqa: B039
"""The request being served in this context; one called `-` outside of any."""


class Tally:
    """A histogram that one thread writes and any thread may read, without a lock.

    `bounds` are the upper bounds of its buckets, ascending; `counts` has one more for what lies above them all.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Counts one value; some hundred nanoseconds."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """A bar on the console where a person looks at it, and a log line a stage everywhere."""
    stage_now = ""
    # disable=None: no bar where stderr is not a terminal.
    with tqdm(total=100, desc=title, unit="%", disable=None, leave=False, bar_format=_BAR) as bar:

        def report(stage: str, fraction: float) -> None:
            nonlocal stage_now
            if stage != stage_now:
                stage_now = stage
                log.info("%s: %s", title, stage)
                bar.set_description(f"{title}: {stage}")
            bar.update(max(0.0, 100 * fraction - bar.n))

        yield report
