"""The outermost layer, around an application that misbehaves: every request gets its answer."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from higgs_server.server.admission import DeadlineExceeded
from higgs_server.server.callers import Callers
from higgs_server.server.edge import Edge
from higgs_server.server.origins import Origins
from higgs_server.settings import Settings
from higgs_server.telemetry import Observer, RequestRecord
from higgs_server.types import TooLarge

SMALL = Settings(max_upload_mb=1, max_text_length=10)


POST: Scope = {"type": "http", "method": "POST", "path": "/x", "headers": [], "http_version": "1.1"}


def around(app: ASGIApp, *observers: Observer) -> Edge:
    return Edge(app, SMALL, Callers(SMALL), Origins(SMALL), observers)


def ask(app: ASGIApp, method: str = "POST", **options: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(around(app), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await asyncio.wait_for(client.request(method, "/x", **options), 20)

    return asyncio.run(run())


async def broken(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body"):
        pass
    raise RuntimeError("secret detail")


async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
    raise TooLarge("too large", param="text")


async def reading(scope: Scope, receive: Receive, send: Send) -> None:
    count = 0
    while True:
        message = await receive()
        count += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(count).encode()})


@pytest.mark.parametrize("body", [b"", b"some bytes"])
def test_a_bug_is_answered_without_its_details_and_nothing_hangs(body: bytes) -> None:
    answer = ask(broken, content=body)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"]


def test_an_error_before_the_body_is_read_is_answered_too() -> None:
    answer = ask(refusing, content=b"x" * 1000)
    assert answer.status_code == 413
    assert answer.json()["error"] == {"code": "too_large", "param": "text"}


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_beyond_the_limit(declared: bool) -> None:
    async def chunks() -> Any:
        for _ in range(8):
            yield b"x" * 2**18

    content: Any = b"x" * 2**21 if declared else chunks()
    assert ask(reading, content=content).status_code == 413
    assert ask(reading, content=b"x" * 1000).text == "1000"


def test_an_error_that_the_application_answers_waits_for_the_body_too() -> None:
    """Closing on a client that is still sending would reset the connection."""
    arriving = [b"x" * 2**16] * 9
    left_at_the_answer = []

    async def receive() -> Message:
        return {"type": "http.request", "body": arriving.pop(), "more_body": bool(arriving)}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            left_at_the_answer.append(len(arriving))

    async def unknown(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await PlainTextResponse("what is that?", 404)(scope, receive, send)

    asyncio.run(around(unknown)(POST, receive, send))
    assert left_at_the_answer == [0]


def test_a_failure_in_the_middle_of_an_answer_keeps_its_name() -> None:
    records: list[RequestRecord] = []

    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("response already started") from DeadlineExceeded("too late")

    async def unused(*_: Any) -> Any: ...

    with pytest.raises(DeadlineExceeded):
        asyncio.run(around(failing, records.append)(POST, unused, unused))
    assert [record.outcome for record in records] == ["deadline_exceeded"]


@pytest.mark.parametrize("stopping", [True, False])
def test_who_is_cancelled_as_the_server_ends_is_told(stopping: bool) -> None:
    async def story() -> list[Message]:
        ends, sent, begun = asyncio.Event(), list[Message](), asyncio.Event()

        async def speaking(scope: Scope, receive: Receive, send: Send) -> None:
            begun.set()
            await asyncio.Event().wait()

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message)

        task = asyncio.ensure_future(around(speaking)({**POST, "state": {"stopping": ends}}, receive, send))
        await begun.wait()
        if stopping:
            ends.set()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() is not stopping
        return sent

    sent = asyncio.run(story())
    assert [message.get("status") for message in sent] == ([503, None] if stopping else [])


@pytest.mark.parametrize("able", [True, False])
def test_a_handshake_is_refused_as_well_as_the_server_around_it_can(able: bool) -> None:
    settings = Settings(api_key="k")
    extensions = {"extensions": {"websocket.http.response": {}}} if able else {}
    scope = {"type": "websocket", "path": "/v1/audio/speech/stream", "headers": [], **extensions}
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Edge(refusing, settings, Callers(settings), Origins(settings))(scope, receive, send))
    if able:
        assert [message["type"] for message in sent] == [
            "websocket.http.response.start",
            "websocket.http.response.body",
        ]
        assert sent[0]["status"] == 401
    else:
        assert [message["type"] for message in sent] == ["websocket.close"]
