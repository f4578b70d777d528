"""The outermost layer, around an application that misbehaves: every request gets its answer."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from higgs_server.server.callers import Callers
from higgs_server.server.edge import Edge
from higgs_server.server.origins import Origins
from higgs_server.settings import Settings
from higgs_server.types import TooLarge

SMALL = Settings(max_upload_mb=1, max_text_length=10)


def ask(app: ASGIApp, method: str = "POST", **options: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(Edge(app, SMALL, Callers(SMALL), Origins(SMALL)), raise_app_exceptions=False)
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
