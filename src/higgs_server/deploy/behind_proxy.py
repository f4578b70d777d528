"""ASGI as a server of one's own has it, where Ray Serve's proxy does otherwise.

It gives every request an id, which ours takes over, and writes it into the answer itself. And whoever goes away has the
request cancelled together with its call for the next message, which may fail before the request hears of it: an end of
the connection like any other.
"""

from __future__ import annotations

from ray.exceptions import RayActorError, TaskCancelledError
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BehindProxy:
    """The application's outermost layer on Ray Serve."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        gone: Message | None = None

        async def receive_to_the_end() -> Message:
            nonlocal gone
            if gone is None:
                try:
                    return await receive()
                except (TaskCancelledError, RayActorError):  # the client's end, or that of the proxy before it
                    abnormal = {"code": 1006} if scope["type"] == "websocket" else {}
                    gone = {"type": f"{scope['type']}.disconnect", **abnormal}
            return gone

        async def send_without_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["x-request-id"]
            await send(message)

        await self._app(scope, receive_to_the_end, send_without_id)
