"""The end of a server, moment by moment: whoever has connected is answered."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from answers import rest_of
from higgs_server.server.listener import HttpConnection, Listener
from higgs_server.settings import Settings

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
MUCH = 20 * 2**20
HANDSHAKE = (
    b"GET /session HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


class Served:
    """A listener with one page, and one session that says a word once `said` is set."""

    def __init__(self) -> None:
        self.accepted, self.said, self._stopping = asyncio.Event(), asyncio.Event(), asyncio.Event()
        routes = [Route("/", self._page), Route("/much", self._much), WebSocketRoute("/session", self._session)]
        app = Starlette(routes=routes, lifespan=self._lifespan)
        self.listener = Listener(app, Settings(port=0), self._stopping.set)
        self._connected = ExitStack()

    async def __aenter__(self) -> Served:
        config = self.listener.config
        config.load()
        self.listener.lifespan = config.lifespan_class(config)
        await self.listener.startup()
        return self

    async def __aexit__(self, *error: object) -> None:
        self._connected.close()

    def connect(self) -> socket.socket:
        """The kernel's part of it: the event loop does not run."""
        address = self.listener.servers[0].sockets[0].getsockname()
        raw = self._connected.enter_context(socket.create_connection(address))
        raw.settimeout(60)
        return raw

    async def connection(self) -> HttpConnection:
        """The server's side of the only one, once the server has it."""
        while not (connections := list(self.listener.server_state.connections)):
            await asyncio.sleep(0)
        (connection,) = connections
        assert isinstance(connection, HttpConnection)
        return connection

    async def end(self) -> None:
        await asyncio.wait_for(self.listener.shutdown(), 60)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[dict[str, Any]]:
        yield {"patience": 60.0, "stopping": self._stopping}

    async def _page(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse("a page")

    async def _much(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse(bytes(MUCH))

    async def _session(self, session: WebSocket) -> None:
        await session.accept()
        self.accepted.set()
        await self.said.wait()
        await session.send_text("a word")


@pytest.mark.parametrize("asked", [REQUEST, HANDSHAKE], ids=["request", "handshake"])
@pytest.mark.parametrize("turns", range(6))
def test_who_has_connected_is_answered_however_far_the_loop_has_come(turns: int, asked: bytes) -> None:
    async def run() -> None:
        async with Served() as served:
            served.said.set()
            raws = [served.connect() for _ in range(3)]
            for raw in raws:
                raw.sendall(asked)
            for _ in range(turns):
                await asyncio.sleep(0)
            answers = asyncio.gather(*(asyncio.to_thread(rest_of, raw) for raw in raws))
            await served.end()
            begin, word = (b"HTTP/1.1 101 ", b"a word") if asked == HANDSHAKE else (b"HTTP/1.1 200 ", b"a page")
            assert all(answer.startswith(begin) and word in answer for answer in await answers), await answers

    asyncio.run(run())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_what_a_client_has_taken_is_known_to_the_byte() -> None:
    """Its own kernel makes room by the megabyte: who reads as it plays would seem to have stopped in between."""

    async def run() -> None:
        async with Served() as served:
            raw = served.connect()
            raw.sendall(REQUEST.replace(b"/", b"/much", 1))
            connection = await served.connection()
            async with asyncio.timeout(60):
                while not connection.transport.get_write_buffer_size():
                    await asyncio.sleep(0)
                before, read = connection._taken(), 0
                assert 0 < before < MUCH
                while connection._taken() == before:  # whatever becomes of what asyncio holds
                    read += len(await asyncio.to_thread(raw.recv, 4096))
                while read < MUCH:
                    read += len(await asyncio.to_thread(raw.recv, 2**20))
                assert connection._taken() > MUCH
            await served.end()

    asyncio.run(run())


def test_who_has_much_to_play_has_time_for_it() -> None:
    async def run() -> None:
        async with Served() as served:
            served.connect()
            connection = await served.connection()
            now = connection.loop.time()
            waits = []
            for taken in (0, 10**7, 10**9):
                connection._taken = lambda taken=taken: taken  # type: ignore[method-assign]
                connection._await_reading()
                assert connection._unread_timer is not None
                waits.append(round(connection._unread_timer.when() - now))
                connection._all_read()
            assert waits == [60, 60 + 156, 60 + 262]
            await served.end()

    asyncio.run(run())


def test_a_session_that_begins_on_an_idle_connection_outlives_its_lingering() -> None:
    async def run() -> None:
        async with Served() as served:
            raw = served.connect()
            idle = await served.connection()
            end = asyncio.ensure_future(served.end())
            await asyncio.sleep(0)
            raw.sendall(HANDSHAKE)
            await asyncio.wait_for(served.accepted.wait(), 60)
            assert idle._arriving is None, "nothing is waited for that would end the session"
            idle._close_idle()  # what the timer of its lingering does
            served.said.set()
            answer = await asyncio.to_thread(rest_of, raw)
            await end
            assert answer.startswith(b"HTTP/1.1 101 ")
            assert b"a word" in answer

    asyncio.run(run())


def test_an_idle_connection_that_came_in_last_does_not_keep_the_server_up() -> None:
    async def run() -> None:
        async with Served() as served:
            raw = served.connect()
            end = asyncio.ensure_future(served.end())
            assert await asyncio.to_thread(rest_of, raw) == b""
            await end

    asyncio.run(run())
