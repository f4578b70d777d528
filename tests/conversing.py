"""A client's side of the WebSocket `/v1/audio/speech/stream`."""

from __future__ import annotations

import json
from typing import Any

from websockets.sync.client import ClientConnection, connect

Message = bytes | dict[str, Any]


def connected(url: str, **options: Any) -> ClientConnection:
    """A new session with the server at this address; use it in a `with`."""
    return connect(url.replace("http", "ws", 1) + "/v1/audio/speech/stream", **options)


def send(socket: ClientConnection, kind: str, **fields: Any) -> None:
    socket.send(json.dumps({"type": kind, **fields}))


def receive_until(socket: ClientConnection, kind: str) -> list[Message]:
    """What the server sends, up to the first message of this type."""
    found: list[Message] = []
    while not found or isinstance(found[-1], bytes) or found[-1]["type"] != kind:
        message = socket.recv(timeout=120)
        found.append(message if isinstance(message, bytes) else json.loads(message))
    return found


def say(socket: ClientConnection, *texts: str, **config: Any) -> list[Message]:
    """All that is answered to these pieces of text, to the end of the session."""
    send(socket, "session.config", **config)
    for text in texts:
        send(socket, "input.text", text=text)
    send(socket, "input.done")
    return receive_until(socket, "session.done")


def of_type(messages: list[Message], kind: str) -> list[dict[str, Any]]:
    return [message for message in messages if isinstance(message, dict) and message["type"] == kind]


def sound(messages: list[Message]) -> bytes:
    """The binary ones, joined."""
    return b"".join(message for message in messages if isinstance(message, bytes))
