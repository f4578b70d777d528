"""What Ray Serve's proxy does in its own way reaches the application as any server's doing would. Without a cluster."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayError, TaskCancelledError
from starlette.types import Message, Receive, Scope, Send

from higgs_server.deploy.behind_proxy import BehindProxy

pytestmark = pytest.mark.ray

END = {
    "http": {"type": "http.disconnect"},
    "websocket": {"type": "websocket.disconnect", "code": 1006},
}


def passed_on(kind: str, arriving: list[Message | RayError], calls: int) -> list[Message]:
    """What an application gets from as many calls of `receive`, where what arrives through the proxy is that."""
    got: list[Message] = []

    async def receive() -> Message:
        item = arriving.pop(0)
        if isinstance(item, RayError):
            raise item
        return item

    async def send(message: Message) -> None: ...

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        got.extend([await receive() for _ in range(calls)])

    asyncio.run(BehindProxy(application)({"type": kind}, receive, send))
    return got


@pytest.mark.parametrize("kind", END)
@pytest.mark.parametrize("error", [TaskCancelledError(), ActorDiedError()])
def test_a_call_that_dies_with_its_client_is_the_end_of_the_connection(kind: str, error: RayError) -> None:
    first: dict[str, Any] = {"type": f"{kind}.request"}
    assert passed_on(kind, [first, error], calls=3) == [first, END[kind], END[kind]]


def test_another_failure_is_one() -> None:
    with pytest.raises(RayError, match="broken"):
        passed_on("http", [RayError("broken")], calls=1)
