"""What every request passes before its endpoint: its id, the log line, the key, and the limit on its body.

Pure ASGI, so that a closed connection and a stream pass through untouched.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from higgs_server.server.access import Access
from higgs_server.server.errors import Unauthorized, error_response, unexpected
from higgs_server.server.studio import wants_page
from higgs_server.settings import Settings
from higgs_server.telemetry import Observer, RequestRecord, current_request
from higgs_server.types import InvalidRequest, SpeechError, TooLarge

_OPEN_PATHS = {"/health"}
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
MAX_UNREAD_BYTES = 64 * 2**20


class Edge:
    """The outermost layer."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        observers: tuple[Observer, ...] = (),
        endpoints: Collection[str] = frozenset(),
    ) -> None:
        """`observers` are told of the end of each request; `endpoints` are the templates of the known routes."""
        self._app = app
        self._observers = observers
        self._endpoints = endpoints
        key = settings.api_key.get_secret_value() if settings.api_key else ""
        self._key = key.encode()
        self._timeout = settings.request_timeout
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
        status = 0
        received = 0
        unread = True

        async def limited_receive() -> Message:
            nonlocal received, unread
            message = await receive()
            received += len(message.get("body", b""))
            unread = message.get("more_body", False)
            if received > self._max_body:
                raise self._too_large()
            return message

        async def observed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = record.id
            access.sent(message)
            await send(message)

        try:
            self._check(scope["path"], headers)
            record.deadline = self._deadline(headers)
            await self._app(scope, limited_receive, observed_send)
        except Exception as error:
            if status:
                record.error = record.error or (error if isinstance(error, SpeechError) else SpeechError(str(error)))
                raise
            known = record.error = error if isinstance(error, SpeechError) else unexpected(error)
            # What is left of the body is read, within reason: closing on a client that is still sending would reset
            # the connection, and the answer would be lost.
            if unread:
                await self._drain(receive, headers)
            await error_response(known, headers, scope["path"])(scope, receive, observed_send)
        finally:
            access.done()
            current_request.reset(token)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = RequestRecord(secrets.token_hex(8), caller=_address(scope), observers=self._observers)
        access = Access(record, scope, self._endpoints)
        token = current_request.set(record)

        async def observed_send(message: Message) -> None:
            access.sent(message)
            await send(message)

        try:
            try:
                headers = Headers(scope=scope)
                self._check(scope["path"], headers)
                record.deadline = self._deadline(headers)
            except SpeechError as error:
                record.error = error
                # Closed before it is accepted: the client sees HTTP 403.
                await receive()
                await observed_send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, observed_send)
        finally:
            access.done()
            current_request.reset(token)

    def _check(self, path: str, headers: Headers) -> None:
        if self._key and not _is_open(path, headers):
            scheme, _, bearer = headers.get("authorization", "").partition(" ")
            given = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
            if not secrets.compare_digest(given.encode(), self._key):
                raise Unauthorized(
                    "This server asks for a key: send `Authorization: Bearer KEY` or `X-API-Key: KEY`.",
                    "本服务需要密钥：请发送 `Authorization: Bearer 密钥` 或 `X-API-Key: 密钥`。",
                )
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._max_body:
            raise self._too_large()

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

    def _too_large(self) -> TooLarge:
        limit = f"{self._max_body / 2**20:.0f} MB"
        return TooLarge(f"The request is larger than {limit}.", f"请求超过 {limit}。")

    async def _drain(self, receive: Receive, headers: Headers) -> None:
        if headers.get("expect", "").lower() == "100-continue":
            return
        unread = 0
        while unread < MAX_UNREAD_BYTES:
            message = await receive()
            unread += len(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                return


def _is_open(path: str, headers: Headers) -> bool:
    """What needs no key. The studio's own files hold no secret, and a browser that opens a page cannot send one."""
    if path == "/":
        return wants_page(headers.get("accept", ""))
    return path in _OPEN_PATHS or path.startswith("/studio/")


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "-"
