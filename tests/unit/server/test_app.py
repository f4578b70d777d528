"""The application without a port and without a model: what is bounded, and what answers carry."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from higgs_server.library.voices import VoiceLibrary
from higgs_server.server.admission import DeadlineExceeded, Overloaded
from higgs_server.server.app import create_app
from higgs_server.server.edge import LARGE_AT_ONCE, LARGE_BYTES
from higgs_server.server.listener import WebSocketConnection
from higgs_server.server.model import PLANNED_AT_ONCE, ServedModel
from higgs_server.server.voices import MOST_AT_ONCE, Durations, Recordings
from higgs_server.settings import Settings
from higgs_server.telemetry import RequestRecord, current_request
from higgs_server.types import GenerationFailed, InvalidRequest, Voice

PATIENCE = 60
"""Seconds after which something that never comes fails the test instead of hanging it."""


def ask(story: Callable[[httpx.AsyncClient], Awaitable[None]], **settings: Any) -> None:
    async def run() -> None:
        transport = httpx.ASGITransport(create_app(Settings(**settings)))
        async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=PATIENCE) as client:
            await asyncio.wait_for(story(client), PATIENCE)

    asyncio.run(run())


def test_planning_leaves_the_threads_that_streams_need() -> None:
    enough, lock, running = threading.Event(), threading.Lock(), []

    def encode(number: int) -> int:
        with lock:
            running.append(number)
        assert enough.wait(PATIENCE)
        return number

    async def story() -> None:
        model = ServedModel(Settings())
        plans = [asyncio.ensure_future(model.plan(encode, number)) for number in range(3 * PLANNED_AT_ONCE)]
        try:
            await asyncio.sleep(0)
            async with asyncio.timeout(PATIENCE):
                assert await asyncio.to_thread(str, 1) == "1"
            assert len(running) <= PLANNED_AT_ONCE
        finally:
            enough.set()
        assert await asyncio.gather(*plans) == list(range(3 * PLANNED_AT_ONCE))

    asyncio.run(story())


def test_planning_is_bounded_and_fair_and_given_up_with_whoever_asked() -> None:
    enough, begun = threading.Event(), []

    def encode(number: int) -> int:
        begun.append(number)
        assert enough.wait(PATIENCE)
        return number

    async def story() -> None:
        model = ServedModel(Settings())
        model._planning.max_waiting = 3

        def plan(number: int, caller: str, deadline: float | None = None) -> asyncio.Task[int]:
            current_request.set(RequestRecord("-", caller=caller, deadline=deadline))
            return asyncio.ensure_future(model.plan(encode, number))

        running = [plan(number, "greedy") for number in range(PLANNED_AT_ONCE)]
        waiting = [plan(number, "greedy") for number in (100, 101)]
        with pytest.raises(DeadlineExceeded):
            await plan(102, "hasty", deadline=0.01)
        waiting.append(plan(103, "greedy"))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await plan(104, "greedy")
        polite = plan(200, "polite")  # in place of the youngest of who has most
        with pytest.raises(Overloaded):
            await waiting.pop()
        waiting[-1].cancel()
        await asyncio.wait([waiting.pop()])
        enough.set()
        assert await asyncio.gather(*running, *waiting, polite) == [*range(PLANNED_AT_ONCE), 100, 200]

    asyncio.run(story())
    assert sorted(begun) == [*range(PLANNED_AT_ONCE), 100, 200]


def test_large_bodies_are_read_few_at_a_time_and_small_ones_at_once() -> None:
    async def story(client: httpx.AsyncClient) -> None:
        arriving: list[int] = []
        full, rest = asyncio.Event(), asyncio.Event()

        async def small() -> AsyncIterator[bytes]:
            yield b'{"text": "Hello."}'

        async def large(number: int) -> AsyncIterator[bytes]:
            yield b" " * (LARGE_BYTES + 1)
            arriving.append(number)
            if len(arriving) == LARGE_AT_ONCE:
                full.set()
            await rest.wait()
            yield b'{"text": "Hello."}'

        def send(body: AsyncIterator[bytes]) -> Awaitable[httpx.Response]:
            return client.post("/plan", content=body, headers={"content-type": "application/json"})

        many = [asyncio.ensure_future(send(large(number))) for number in range(3 * LARGE_AT_ONCE)]
        await full.wait()
        assert (await send(small())).status_code == 200
        assert len(arriving) == LARGE_AT_ONCE
        rest.set()
        assert {answer.status_code for answer in await asyncio.gather(*many)} == {200}

    ask(story, max_waiting=3 * LARGE_AT_ONCE)


def test_a_large_body_whose_turn_does_not_come_is_refused() -> None:
    async def story(client: httpx.AsyncClient) -> None:
        arriving = 0
        full, rest = asyncio.Event(), asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            nonlocal arriving
            yield b" " * (LARGE_BYTES + 1)
            arriving += 1
            if arriving == LARGE_AT_ONCE:
                full.set()
            await rest.wait()
            yield b'{"text": "Hello."}'

        async def one_more() -> AsyncIterator[bytes]:
            yield b" " * (LARGE_BYTES + 1)
            yield b'{"text": "Hello."}'

        def send(body: AsyncIterator[bytes]) -> Awaitable[httpx.Response]:
            return client.post("/plan", content=body, headers={"content-type": "application/json"})

        many = [asyncio.ensure_future(send(body())) for _ in range(LARGE_AT_ONCE)]
        await full.wait()
        refused = await send(one_more())
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        rest.set()
        assert {answer.status_code for answer in await asyncio.gather(*many)} == {200}

    ask(story, client_timeout=0.05)


def test_recordings_are_kept_few_at_a_time_whichever_way_they_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, pair = threading.Lock(), threading.Barrier(MOST_AT_ONCE)
    active, peak = 0, 0

    def keep(self: Recordings, *_: object) -> None:
        nonlocal active, peak
        with lock:
            active += 1
            peak = max(peak, active)
        pair.wait(PATIENCE)
        with lock:
            active -= 1
        raise InvalidRequest("not today")

    monkeypatch.setattr(Recordings, "_keep", keep)

    async def story(client: httpx.AsyncClient) -> None:
        sent = [
            sending
            for number in range(4)
            for sending in (
                client.post("/upload-audio", files={"audio_file": (f"a{number}.wav", b"RIFF")}),
                client.post(
                    "/v1/audio/voices", data={"name": f"b{number}"}, files={"audio_sample": ("b.wav", b"RIFF")}
                ),
            )
        ]
        assert {answer.status_code for answer in await asyncio.gather(*sent)} == {422, 400}

    ask(story, voice_prompts_dir=tmp_path)
    assert peak == MOST_AT_ONCE


def test_a_text_part_that_is_too_long_is_told_as_such() -> None:
    async def story(client: httpx.AsyncClient) -> None:
        for name in ("text", "ref_text"):
            fields = {"text": (None, "Hi."), name: (None, "word " * 100)}
            answer = await client.post("/generate-upload", files=fields)
            assert (answer.status_code, answer.json()["error"]["param"]) == (413, name)

    ask(story, max_text_length=10)


def test_a_wrong_method_is_answered_with_those_that_there_are() -> None:
    async def story(client: httpx.AsyncClient) -> None:
        answer = await client.get("/generate")
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")

    ask(story)


def test_lengths_are_told_while_the_library_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    durations = Durations(VoiceLibrary(tmp_path))

    def measured(name: str) -> float:
        durations.keep_only([])  # another listing, of another moment
        return 1.5

    monkeypatch.setattr(durations, "_measured", measured)
    assert durations.of(Voice("anna", version="1")) == 1.5


@pytest.mark.parametrize("told", [False, True])
def test_a_session_ends_itself_only_where_it_was_told_that_the_server_does(
    told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[object] = []
    monkeypatch.setattr(WebSocketsSansIOProtocol, "shutdown", lambda self: closed.append(self))
    connection = WebSocketConnection.__new__(WebSocketConnection)
    stopping = asyncio.Event()
    connection.handshake_complete, connection.app_state = True, {"stopping": stopping}
    if told:
        stopping.set()
    connection.shutdown()
    assert closed == ([] if told else [connection])


def test_what_a_library_says_stays_within() -> None:
    for cause, kind in (
        (OSError("/root/models/x.onnx is broken"), "OSError"),
        (MemoryError("cuda:0"), "out of memory"),
    ):
        failed = GenerationFailed(cause)
        assert f"({kind})" in str(failed)
        assert not any(str(cause) in message for message in (str(failed), failed.zh))
