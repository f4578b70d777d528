"""A request as the log, the metrics and the traces see it: what passes between client and application is noted.

Changes nothing and holds nothing back; server/edge.py decides.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.types import Message, Scope

from higgs_server.telemetry import RequestRecord

CLIENT_CLOSED_REQUEST = 499
"""What errors.py answers to a client that has gone: nobody reads it."""
_SWITCHING_PROTOCOLS, _FORBIDDEN = 101, 403


class Access:
    """Writes the outside of one request into its record. `endpoints` are the templates of the known routes."""

    def __init__(self, record: RequestRecord, scope: Scope, endpoints: Collection[str]) -> None:
        headers = Headers(scope=scope)
        record.method = scope.get("method", "WEBSOCKET")
        # Quoted, so that no path can write a line of its own into the log.
        record.path = quote(scope["path"])
        record.trace = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        # Before routing, which not every request reaches, a path is its own template.
        record.endpoint = scope["path"] if scope["path"] in endpoints else "other"
        self._record = record
        self._scope = scope

    def sent(self, message: Message) -> None:
        """A message on its way to the client."""
        record = self._record
        match message["type"]:
            case "http.response.start" | "websocket.http.response.start" if message["status"] != CLIENT_CLOSED_REQUEST:
                record.status = message["status"]
            case "http.response.body":
                record.bytes += len(message.get("body", b""))
                record.complete = record.status is not None and not message.get("more_body")
            case "websocket.accept":
                record.status = _SWITCHING_PROTOCOLS
            case "websocket.send":
                record.bytes += len(message.get("bytes") or (message.get("text") or "").encode())
            case "websocket.close":
                record.status = record.status or _FORBIDDEN

    def done(self) -> None:
        """The application has returned."""
        route = self._scope.get("route")
        self._record.endpoint = getattr(route, "path", None) or self._record.endpoint
        if self._scope["type"] == "websocket":
            # Either side may end a session whenever it likes; its sentences say what was cut off.
            self._record.complete = self._record.status is not None
        self._record.end()
