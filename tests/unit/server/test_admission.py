"""Turns: bounded, fair between callers, given back however a request ends."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from higgs_server.server.admission import Admission, DeadlineExceeded, Overloaded
from higgs_server.telemetry import RequestRecord


class Crowd:
    """Requests of some callers in one queue. `began` lists who got a turn, in order; each holds it until released."""

    def __init__(self, running: int, waiting: int | None = None) -> None:
        self.admission = Admission(waiting)
        self.admission.max_running = running
        self.began: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._ends: dict[str, asyncio.Event] = {}

    async def come(self, *names: str, deadline: float | None = None) -> None:
        """Requests by name; the first letter is the caller's."""
        for name in names:
            self.tasks[name] = asyncio.create_task(self._request(name, deadline))
        await settle()

    async def _request(self, name: str, deadline: float | None) -> None:
        self._ends[name] = asyncio.Event()
        record = RequestRecord(name, caller=name[0], deadline=deadline)
        async with self.admission.turn(record) as waited:
            assert waited >= 0
            self.began.append(name)
            await self._ends[name].wait()

    async def end(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()
            await self.tasks[name]
        await settle()

    @property
    def counts(self) -> tuple[int, int]:
        return self.admission.state.running, self.admission.state.waiting


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 30))


def test_a_burst_of_one_caller_does_not_starve_another() -> None:
    async def story() -> None:
        crowd = Crowd(running=1)
        await crowd.come("a1", "a2", "a3", "a4", "b1", "b2", "c1")
        assert crowd.counts == (1, 6)
        for name in ("a1", "a2", "b1", "c1", "a3", "b2", "a4"):
            await crowd.end(name)
        assert crowd.began == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]
        assert crowd.counts == (0, 0)

    run(story())


def test_as_many_run_as_may_and_the_queue_has_an_end() -> None:
    async def story() -> None:
        crowd = Crowd(running=2, waiting=1)
        await crowd.come("a1", "a2", "a3", "a4")
        assert crowd.began == ["a1", "a2"]
        with pytest.raises(Overloaded) as refused:
            await crowd.tasks["a4"]
        assert refused.value.retry_after is not None
        assert refused.value.retry_after >= 1
        await crowd.end("a2", "a3", "a1")
        assert crowd.began == ["a1", "a2", "a3"]

    run(story())


def test_a_full_queue_makes_room_for_who_has_less_in_it() -> None:
    async def story() -> None:
        crowd = Crowd(running=1, waiting=3)
        await crowd.come("a1", "a2", "a3", "a4", "b1")
        with pytest.raises(Overloaded):
            await crowd.tasks["a4"]
        await crowd.come("b2")
        with pytest.raises(Overloaded):
            await crowd.tasks["b2"]  # in a3's place b would have more than a
        await crowd.end("a1", "a2", "b1", "a3")
        assert crowd.began == ["a1", "a2", "b1", "a3"]

    run(story())


def test_retry_after_follows_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)

    async def refused(crowd: Crowd) -> int | None:
        await crowd.come("z")
        with pytest.raises(Overloaded) as error:
            await crowd.tasks["z"]
        return error.value.retry_after

    async def story() -> None:
        nonlocal now
        crowd = Crowd(running=2, waiting=3)
        await crowd.come("a", "b", "c", "d", "e")
        now += 30  # nothing has ended yet: a turn takes 30 s at least, and four are ahead of two
        assert await refused(crowd) == 60
        await crowd.end("a", "b")
        await crowd.come("f", "g")
        assert await refused(crowd) == 60
        now += 2
        await crowd.end("c", "d")
        await crowd.come("h", "i")
        assert await refused(crowd) == 32  # (30 + 30 + 2 + 2) / 4 s a turn

    run(story())


def test_who_leaves_the_queue_is_forgotten_at_once() -> None:
    async def story() -> None:
        crowd = Crowd(running=1)
        await crowd.come("a1", "b1", "c1")
        crowd.tasks["b1"].cancel()
        await settle()
        assert crowd.counts == (1, 1)
        # Gone in the very moment its turn comes: the turn goes to the next.
        crowd.tasks["c1"].cancel()
        await crowd.come("d1")
        await crowd.end("a1")
        assert crowd.began == ["a1", "d1"]
        crowd.tasks["d1"].cancel()
        await settle()
        assert crowd.counts == (0, 0)

    run(story())


def test_a_turn_given_to_who_is_just_leaving_is_not_lost() -> None:
    async def story() -> None:
        crowd = Crowd(running=1)
        await crowd.come("a1", "b1", "c1")
        crowd._ends["a1"].set()
        await asyncio.sleep(0)  # b1 has its turn, and does not know it yet
        crowd.tasks["b1"].cancel()
        await settle()
        assert crowd.began == ["a1", "c1"]
        await crowd.end("c1")
        assert crowd.counts == (0, 0)

    run(story())


def test_a_deadline_that_passes_in_the_queue_never_starts() -> None:
    async def story() -> None:
        crowd = Crowd(running=1)
        await crowd.come("a1")
        await crowd.come("b1", deadline=0.01)
        with pytest.raises(DeadlineExceeded):
            await crowd.tasks["b1"]
        assert crowd.counts == (1, 0)
        await crowd.end("a1")
        await crowd.come("b2", deadline=1e-9)  # over before it is here, though a turn is free
        with pytest.raises(DeadlineExceeded):
            await crowd.tasks["b2"]
        assert crowd.began == ["a1"]
        assert crowd.counts == (0, 0)

    run(story())


def test_the_queue_grows_with_what_can_run() -> None:
    admission = Admission()
    assert admission.state.max_waiting == 32
    admission.max_running = 32
    assert admission.state.max_waiting == 128
