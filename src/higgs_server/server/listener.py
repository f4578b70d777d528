"""The listening side: connections that wait for no client for ever, and an orderly end of the process.

uvicorn speaks HTTP and WebSocket; here is what it leaves open. Knows no endpoint.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from higgs_server.server.edge import MAX_HEADER_BYTES
from higgs_server.settings import Settings

SLOWEST = 1_000
"""Bytes a second that a client must send or read at least, beyond the patience it is met with."""
LARGEST_WINDOW, SHOWN_A_SECOND = 16 * 2**20, 16 * 4_000
"""What a client's side may hold unread, in bytes. That it is being read shows once a 16th of it is free again, and who
plays Opus as it comes reads 4 kB a second."""
LINGER = 0.5
"""Seconds that an idle connection stays open when the server ends: what is on its way is answered, and not lost."""
PONG_SECONDS = 300
"""How long a pong may take: it comes once the client has read all the sound before the ping, maybe as it plays it."""
_ACKED = slice(120, 128)
"""Where `bytes_acked` is in Linux's tcp_info."""
_TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class _ReadBy(asyncio.Protocol):
    """A connection that is cut off when its client does not read. `app_state["patience"]` is in seconds."""

    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    app_state: dict[str, Any]
    _unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # Whatever the kernel does not take at once counts as unread.
        self.transport.set_write_buffer_limits(high=0)

    def connection_lost(self, exc: Exception | None) -> None:
        self._all_read()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._all_read()

    def _await_reading(self) -> None:
        patience, taken = self.app_state["patience"], self._taken()
        wait = patience + min(max(taken, 0), LARGEST_WINDOW) / SHOWN_A_SECOND
        self._unread_timer = self.loop.call_later(wait, self._check_reading, taken + patience * SLOWEST)

    def _check_reading(self, least: float) -> None:
        if self._taken() < least:
            self._reset()
        else:
            self._await_reading()

    def _taken(self) -> int:
        """Bytes that have reached the client's side so far; where the kernel does not tell, comparable numbers.

        asyncio's buffer alone says little: the kernel makes room in its own by the megabyte.
        """
        if sys.platform != "linux":
            return -self.transport.get_write_buffer_size()
        info = self.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKED.stop)
        return int.from_bytes(info[_ACKED], sys.byteorder)

    def _all_read(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()

    def _reset(self) -> None:
        """Ends the connection so that no client takes what it has for the whole (RST)."""
        if (raw := self.transport.get_extra_info("socket")) is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


class HttpConnection(_ReadBy, H11Protocol):
    """HTTP/1.1 whose requests must arrive within reason, headers and body together, and are answered to the end.

    Once the server ends, answers that begin say `connection: close` (see edge.py). Who began to be answered before that
    does not know, and may have sent the next request.
    """

    _ending = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.app_state = {**self.app_state, "reset": self._reset}
        self._arriving: asyncio.TimerHandle | None = None
        self._received = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's interface, as are the next two."""
        super().connection_made(transport)
        self._await_request()
        if self.app_state["stopping"].is_set():  # it came in last, and uvicorn has told the others
            self.shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        self._request_is_there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        super().data_received(data)
        self._watch_request()

    def shutdown(self) -> None:
        """uvicorn's call when it stops."""
        self._ending = True
        self.loop.call_later(LINGER, self._close_idle)

    def on_response_complete(self) -> None:
        """uvicorn's, as an answer ends."""
        super().on_response_complete()
        self._watch_request()  # one that came in while this was answered
        if self._ending:
            self.loop.call_later(LINGER, self._close_idle)

    def _close_idle(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if idle and not self._became_a_websocket() and not self.transport.is_closing():
            super().shutdown()

    def _became_a_websocket(self) -> bool:
        return self.transport.get_protocol() is not self

    def _watch_request(self) -> None:
        begun = self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]
        arriving = begun or self.conn.their_state is h11.SEND_BODY
        if self._became_a_websocket() or not arriving:  # to h11, a handshake's body never ends
            self._request_is_there()
        elif self._arriving is None:
            self._await_request()

    def _await_request(self) -> None:
        self._received = 0
        patience = self.app_state["patience"]
        self._arriving = self.loop.call_later(patience, self._check_request, self.loop.time(), patience)

    def _check_request(self, began: float, patience: float) -> None:
        left = began + patience + self._received / SLOWEST - self.loop.time()
        if left > 0:
            self._arriving = self.loop.call_later(left, self._check_request, began, patience)
        elif self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self._reset()
        else:
            self.transport.write(_TIMED_OUT)
            self.transport.close()

    def _request_is_there(self) -> None:
        if self._arriving is not None:
            self._arriving.cancel()
            self._arriving = None


class WebSocketConnection(_ReadBy, WebSocketsSansIOProtocol):
    """A WebSocket whose session is ended by the application when the server stops, not in the middle of a word."""

    async def send(self, message: Any) -> None:
        """ASGI. uvicorn does not count a refusal as an answer to the handshake, and would log a fault."""
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True

    def shutdown(self) -> None:
        """uvicorn's call when it stops; the application knows of it only from `Listener`."""
        if not self.app_state["stopping"].is_set():
            super().shutdown()


def transport(settings: Settings) -> dict[str, Any]:
    """uvicorn's options. Its own choices would depend on which other packages happen to be installed."""
    return {
        "host": settings.host,
        "port": settings.port,
        "loop": "asyncio",
        "http": f"{__name__}:{HttpConnection.__name__}",
        "ws": f"{__name__}:{WebSocketConnection.__name__}",
        "ws_ping_timeout": PONG_SECONDS,
        "log_config": None,
        "h11_max_incomplete_event_size": MAX_HEADER_BYTES,
        "timeout_keep_alive": settings.keep_alive,
        "timeout_graceful_shutdown": settings.shutdown_timeout,
    }


class Listener(uvicorn.Server):
    """Serves until a signal, then finishes what it has begun; a second signal ends it at once."""

    def __init__(self, app: Any, settings: Settings, stop: Callable[[], None]) -> None:
        """`stop` is called on the event loop when it begins to end."""
        super().__init__(Config(app, **transport(settings)))
        self._stop = stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal has come."""
        if self.should_exit:
            os._exit(128 + sig)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's end, which waits for connections and requests."""
        self._stop()
        listening = [sock for server in self.servers for sock in server.sockets]
        loop = asyncio.get_running_loop()
        for sock in listening:
            loop.remove_reader(sock.fileno())
        await asyncio.sleep(0)  # a server that is closed would drop what it has just accepted
        for sock in listening:
            self._accept_all(sock.fileno())
        await super().shutdown(sockets)

    def _accept_all(self, listening: int) -> None:
        """Who has connected without being accepted yet would be reset as the socket closes."""
        with socket.socket(fileno=os.dup(listening)) as queue, suppress(OSError):
            while True:
                accepted, _ = queue.accept()
                accepted.setblocking(False)
                task = asyncio.create_task(self._take_in(accepted))
                self.server_state.tasks.add(task)
                task.add_done_callback(self.server_state.tasks.discard)

    async def _take_in(self, accepted: socket.socket) -> None:
        connection = partial(HttpConnection, self.config, self.server_state, self.lifespan.state)
        await asyncio.get_running_loop().connect_accepted_socket(connection, accepted)
