"""Who may speak now and who waits: a bounded queue, fair between callers, for every transport alike.

Lives on the event loop and belongs to it alone. Knows neither HTTP nor models: a turn is a place among those who run at
the same time, however it is used.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import fmean

from higgs_server.telemetry import RequestRecord
from higgs_server.types import NotReady, SpeechError

LEAST_WAITING = 32
WAITING_PER_RUNNING = 4
_RECENT_TURNS = 32
_Place = asyncio.Future[None]


class Overloaded(NotReady):
    """No room to wait in. `retry_after` is when a turn can be expected at the present speed."""

    status, code = 503, "overloaded"


class DeadlineExceeded(SpeechError):
    """The time that client or server gave the request is over."""

    status, code = 504, "deadline_exceeded"


@dataclass(frozen=True, slots=True)
class QueueState:
    """A moment of the queue: utterances that run and that wait, and the most there may be of each."""

    running: int
    waiting: int
    max_running: int
    max_waiting: int


class Admission:
    """Gives turns, round robin between the callers that wait: a burst of one costs the others a turn at most.

    A full queue takes a newcomer in place of the youngest request of the caller with the most, if the newcomer's own
    caller would still wait with fewer: no burst locks others out either.
    """

    def __init__(self, max_waiting: int | None = None) -> None:
        """`max_waiting` None goes by `max_running`."""
        self.max_running = 1
        """Set before the first turn by whoever knows what can be done at once."""
        self.max_waiting = max_waiting
        self._running: dict[_Place, float] = {}
        """With the time each turn began."""
        self._waiting: dict[str, deque[_Place]] = {}
        """By caller, who stand here in the order of their turns."""
        self._recent: deque[float] = deque(maxlen=_RECENT_TURNS)
        """Seconds that turns took."""

    @property
    def state(self) -> QueueState:
        """How it stands, for metrics and `/info`."""
        most = self.max_waiting
        if most is None:
            most = max(LEAST_WAITING, WAITING_PER_RUNNING * self.max_running)
        return QueueState(len(self._running), sum(map(len, self._waiting.values())), self.max_running, most)

    @asynccontextmanager
    async def turn(self, record: RequestRecord) -> AsyncIterator[float]:
        """Waits for a turn and holds it; gives the seconds it waited.

        Raises Overloaded where there is no room to wait, DeadlineExceeded where the request's time is over before its
        turn. Whoever is cancelled while it waits leaves the queue at once.
        """
        arrived = time.perf_counter()
        place: _Place = asyncio.get_running_loop().create_future()
        try:
            self._join(record.caller, place)
            async with before_deadline(record):
                await place
            yield time.perf_counter() - arrived
        finally:
            self._leave(record.caller, place)

    def _join(self, caller: str, place: _Place) -> None:
        state = self.state
        if state.running >= state.max_running and state.waiting >= state.max_waiting:
            longest = max(self._waiting.values(), key=len, default=deque())
            if len(longest) <= len(self._waiting.get(caller, ())) + 1:
                raise self._overloaded()
            youngest = longest.pop()
            if not youngest.done():
                youngest.set_exception(self._overloaded())
        self._waiting.setdefault(caller, deque()).append(place)
        self._admit()

    def _admit(self) -> None:
        """Gives the turns that are free."""
        while self._waiting and len(self._running) < self.max_running:
            caller = next(iter(self._waiting))
            places = self._waiting.pop(caller)
            place = places.popleft()
            if places:
                self._waiting[caller] = places
            if not place.done():  # else its client has just gone
                self._running[place] = time.perf_counter()
                place.set_result(None)

    def _leave(self, caller: str, place: _Place) -> None:
        began = self._running.pop(place, None)
        if began is not None:
            self._recent.append(time.perf_counter() - began)
        places = self._waiting.get(caller, deque())
        if place in places:
            places.remove(place)
            if not places:
                del self._waiting[caller]
        self._admit()

    def _overloaded(self) -> Overloaded:
        state = self.state
        now = time.perf_counter()
        # Before the first turn is over, one takes at least as long as the oldest has so far.
        turns = self._recent or [now - min(self._running.values(), default=now)]
        retry_after = max(1, math.ceil(fmean(turns) * (state.waiting + 1) / state.max_running))
        return Overloaded(
            f"The server is busy: {state.running} requests run and {state.waiting} wait. "
            f"Try again in {retry_after} seconds.",
            f"服务器繁忙：{state.running} 个请求正在处理，{state.waiting} 个在排队。请在 {retry_after} 秒后重试。",
            retry_after=retry_after,
        )


@asynccontextmanager
async def before_deadline(record: RequestRecord) -> AsyncIterator[None]:
    """For a block that waits: raises DeadlineExceeded in it once the record's time is over."""
    left = record.remaining
    try:
        async with asyncio.timeout(left):
            if left is not None and left <= 0:
                await asyncio.sleep(0)  # what could be had at once comes too late as well
            yield
    except TimeoutError:
        raise DeadlineExceeded(
            f"The answer was not complete within {record.deadline:g} seconds: send a shorter text, or allow more time "
            "(x-request-timeout, --request-timeout).",
            f"未能在 {record.deadline:g} 秒内完成：请缩短文本，或放宽时限（x-request-timeout、--request-timeout）。",
        ) from None
