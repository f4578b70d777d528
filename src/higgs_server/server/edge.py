"""What every request passes before its endpoint: its id, the log line, its caller and the limits on what it sends.

Pure ASGI, so that a closed connection and a stream pass through untouched.
"""

from __future__ import annotations

import asyncio
import math
import re
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from higgs_server.server.access import Access
from higgs_server.server.admission import Overloaded, before_deadline
from higgs_server.server.callers import Callers
from higgs_server.server.errors import HeadersTooLarge, error_response, unexpected
from higgs_server.server.origins import Origins
from higgs_server.server.studio import wants_page
from higgs_server.settings import Settings
from higgs_server.telemetry import Observer, RequestRecord, current_request
from higgs_server.types import InvalidRequest, NotReady, SpeechError, TooLarge

_OPEN_PATHS = {"/health"}
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
MAX_UNREAD_BYTES = 64 * 2**20
LARGE_BYTES, LARGE_AT_ONCE = 2**20, 32
"""Of bodies beyond that size so many are read at the same time: each lies in memory whole."""
_FREE_METHODS = {"GET", "HEAD", "OPTIONS"}
"""They speak nothing, and count for no limit of a caller's."""
MAX_HEADERS, MAX_HEADER_BYTES = 100, 32 * 2**10


class Edge:
    """The outermost layer."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        callers: Callers,
        origins: Origins,
        observers: tuple[Observer, ...] = (),
        endpoints: Collection[str] = frozenset(),
    ) -> None:
        """`observers` are told of the end of each request; `endpoints` are the templates of the known routes."""
        self._app = app
        self._observers = observers
        self._endpoints = endpoints
        self._callers = callers
        self._origins = origins
        self._timeout, self._patience = settings.request_timeout, settings.client_timeout
        self._large_bodies = asyncio.Semaphore(LARGE_AT_ONCE)
        self._max_body = settings.max_upload_mb * 2**20 + 8 * settings.max_text_length + 2**16

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _SAFE_ID.fullmatch(given) else secrets.token_hex(8)
        record = RequestRecord(request_id, caller=_address(scope), observers=self._observers)
        access = Access(record, scope, self._endpoints)
        token = current_request.set(record)
        state = scope.get("state", {})
        status = 0
        received = 0
        unread, has_turn = True, False

        def stopping() -> bool:
            event = state.get("stopping")
            return event is not None and event.is_set()

        async def read() -> Message:
            nonlocal received, unread
            message = await receive()
            received += len(message.get("body", b""))
            unread = message.get("more_body", False)
            return message

        async def limited_receive() -> Message:
            nonlocal has_turn
            message = await read()
            if received > self._max_body:
                raise self._too_large()
            if unread and received > LARGE_BYTES and not has_turn:
                await self._turn_to_read(record)
                has_turn = True
            elif has_turn and not unread:
                self._large_bodies.release()
                has_turn = False
            return message

        async def observed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                if message["status"] >= 400 and headers.get("expect", "").lower() != "100-continue":
                    # What is left of the body is read, within reason: closing on a client that is still sending would
                    # reset the connection, and the answer would be lost.
                    most = received + MAX_UNREAD_BYTES
                    while unread and received < most:
                        await read()
                status = message["status"]
                given_back = MutableHeaders(scope=message)
                given_back["x-request-id"] = record.id
                if stopping():
                    given_back["connection"] = "close"
            access.sent(message)
            await send(message)

        try:
            with self._admitted(record, scope, headers):
                await self._app(scope, limited_receive, observed_send)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError):
                if not stopping():
                    raise
                unread = False
                error = NotReady(  # its time to finish what it has begun is over
                    "The server has ended before the answer was complete: ask again.",
                    "服务已停止，未能完成这次请求，请重试。",
                    retry_after=10,
                )
            elif isinstance(error.__cause__, SpeechError):
                error = error.__cause__  # Starlette's word for one in the middle of an answer
            if status:
                if scope.get("http_version") == "1.0" and (reset := state.get("reset")):
                    reset()  # such an answer ends with its connection, and an orderly end would look like its own
                record.error = record.error or (error if isinstance(error, SpeechError) else SpeechError(str(error)))
                raise error
            known = record.error = error if isinstance(error, SpeechError) else unexpected(error)
            await error_response(known, headers, scope["path"])(scope, receive, observed_send)
        finally:
            if has_turn:
                self._large_bodies.release()
            access.done()
            current_request.reset(token)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = RequestRecord(secrets.token_hex(8), caller=_address(scope), observers=self._observers)
        access = Access(record, scope, self._endpoints)
        token = current_request.set(record)
        headers = Headers(scope=scope)

        async def observed_send(message: Message) -> None:
            if message["type"] in ("websocket.accept", "websocket.http.response.start"):
                MutableHeaders(scope=message)["x-request-id"] = record.id
            access.sent(message)
            await send(message)

        accepting = False
        try:
            with self._admitted(record, scope, headers):
                accepting = True
                await self._app(scope, receive, observed_send)
        except SpeechError as error:
            if accepting:
                raise
            record.error = error
            await receive()
            if "websocket.http.response" in scope.get("extensions", {}):
                await error_response(error, headers, scope["path"])(scope, receive, observed_send)
            else:  # closed before it is accepted: the client sees HTTP 403
                await observed_send({"type": "websocket.close", "code": 1008})
        finally:
            access.done()
            current_request.reset(token)

    @contextmanager
    def _admitted(self, record: RequestRecord, scope: Scope, headers: Headers) -> Iterator[None]:
        """Looks at all that can be refused before the body; the request lasts as long as the block."""
        if not _is_open(scope["path"], headers):
            record.caller = self._callers.name(headers, record.caller)
        if len(headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in headers.raw) > MAX_HEADER_BYTES:
            raise HeadersTooLarge(
                f"Send at most {MAX_HEADERS} headers of {MAX_HEADER_BYTES // 2**10} kB in all.",
                f"请求头最多 {MAX_HEADERS} 个，共 {MAX_HEADER_BYTES // 2**10} kB。",
            )
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._max_body:
            raise self._too_large()
        record.deadline = self._deadline(headers)
        if scope.get("method") in _FREE_METHODS:
            yield
            return
        self._origins.check(headers)
        if scope["type"] == "http":  # a session's sentences count, not the session
            self._callers.count(record.caller)
        with self._callers.at_once(record.caller):
            yield

    def _deadline(self, headers: Headers) -> float | None:
        """Seconds the request may take: what the client gives it, within what the server does."""
        given = headers.get("x-request-timeout")
        if given is None:
            return self._timeout
        try:
            seconds = float(given)
        except ValueError:
            seconds = 0
        if not 0 < seconds < math.inf:
            raise InvalidRequest(
                "x-request-timeout: send a number of seconds above 0.",
                "x-request-timeout 应为大于 0 的秒数。",
                param="x-request-timeout",
            )
        return min(seconds, self._timeout or math.inf)

    async def _turn_to_read(self, record: RequestRecord) -> None:
        try:
            async with asyncio.timeout(self._patience), before_deadline(record):
                await self._large_bodies.acquire()
        except TimeoutError:
            raise Overloaded(
                f"{LARGE_AT_ONCE} large uploads are on their way. Try again in a minute.",
                f"已有 {LARGE_AT_ONCE} 个大文件正在上传，请一分钟后重试。",
                retry_after=60,
            ) from None

    def _too_large(self) -> TooLarge:
        limit = f"{self._max_body / 2**20:.0f} MB"
        return TooLarge(f"The request is larger than {limit}.", f"请求超过 {limit}。")


def _is_open(path: str, headers: Headers) -> bool:
    """What needs no key. The studio's own files hold no secret, and a browser that opens a page cannot send one."""
    if path == "/":
        return wants_page(headers.get("accept", ""))
    return path in _OPEN_PATHS or path.startswith("/studio/")


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "-"
