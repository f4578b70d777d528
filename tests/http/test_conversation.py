"""The WebSocket for voice agents: sentences are spoken as they become complete, and closing ends everything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from answers import generated_samples
from server_process import ServerProcess


@pytest.fixture
def socket(server: ServerProcess) -> Iterator[ClientConnection]:
    with connect(server.url.replace("http", "ws") + "/v1/audio/speech/stream") as socket:
        yield socket


def send(socket: ClientConnection, kind: str, **fields: Any) -> None:
    socket.send(json.dumps({"type": kind, **fields}))


def receive_until(socket: ClientConnection, kind: str) -> list[Any]:
    found: list[Any] = []
    while not found or found[-1] == b"" or isinstance(found[-1], bytes) or found[-1]["type"] != kind:
        message = socket.recv(timeout=60)
        found.append(message if isinstance(message, bytes) else json.loads(message))
    return found


def test_a_sentence_is_spoken_before_the_next_one_is_written(socket: ClientConnection, client: httpx.Client) -> None:
    send(socket, "session.config", voice="belinda", response_format="pcm")
    for word in ("Hello ", "there, ", "Dr. ", "Smith. ", "How"):
        send(socket, "input.text", text=word)
    first = receive_until(socket, "audio.done")
    assert first[0] == {
        "type": "audio.start",
        "sentence_index": 0,
        "format": "pcm",
        "sample_rate": 24_000,
        "sentence_text": "Hello there, Dr. Smith.",
    }
    send(socket, "input.text", text=" are you?")
    send(socket, "input.done")
    rest = receive_until(socket, "session.done")
    assert [m["sentence_text"] for m in rest if isinstance(m, dict) and m["type"] == "audio.start"] == ["How are you?"]
    sound = np.frombuffer(b"".join(m for m in first if isinstance(m, bytes)), "<i2")
    answer = client.post("/generate", json={"text": "Hello there, Dr. Smith.", "ref_audio": "belinda"}).json()
    assert np.array_equal(sound, generated_samples(answer))


def test_a_chinese_sentence_is_complete_with_its_full_stop(socket: ClientConnection) -> None:
    send(socket, "session.config", voice="zh_woman")
    send(socket, "input.text", text="你好。")
    assert receive_until(socket, "audio.done")[0]["sentence_text"] == "你好。"


def test_mistakes_are_told_and_the_session_goes_on(socket: ClientConnection) -> None:
    half_a_character = '{"type": "input.text", "text": "\\ud800. "}'
    for message in ("{", "[]", "{}", '{"type": "dance"}', '{"type": "input.text", "text": 5}', half_a_character):
        socket.send(message)
        assert receive_until(socket, "error")[-1]["message"]
    send(socket, "session.config", speed=99)
    assert receive_until(socket, "error")[-1]["param"] == "speed"
    send(socket, "session.config", voice="nobody")
    send(socket, "input.text", text="Hello. ")
    assert "belinda" in receive_until(socket, "error")[-1]["message"]
    send(socket, "session.config", voice="belinda")
    send(socket, "input.text", text="Hello.")
    send(socket, "input.done")
    assert any(isinstance(message, bytes) for message in receive_until(socket, "session.done"))


@pytest.mark.parametrize("polite", [True, False])
def test_closing_in_the_middle_ends_everything(server: ServerProcess, polite: bool) -> None:
    def sessions() -> int:
        return len([line for line in server.lines if "WEBSOCKET" in line])

    with connect(server.url.replace("http", "ws") + "/v1/audio/speech/stream") as socket:
        send(socket, "session.config", voice="chadwick")
        send(socket, "input.text", text="This goes on and on without an end in sight, as it seems. " * 30)
        receive_until(socket, "audio.start")
        before = sessions()
        if polite:
            send(socket, "session.close")
            for _ in socket:  # what was under way, then the end
                pass
    while sessions() == before:
        server.wait_for_news()


def test_the_key_is_asked_for_here_too() -> None:
    with ServerProcess(["--model-path", "embedded", "--api-key", "s3cret"]) as server:
        url = server.url.replace("http", "ws") + "/v1/audio/speech/stream"
        with pytest.raises(InvalidStatus) as error, connect(url):
            pass
        assert error.value.response.status_code == 403
        with connect(url, additional_headers={"Authorization": "Bearer s3cret"}) as socket:
            send(socket, "session.close")
