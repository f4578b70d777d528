"""Faults in the model: only the requests concerned end, with an error that cannot be taken for sound, and the server
speaks right afterwards."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import httpx
import pytest

from answers import events
from conversing import connected, send
from server_process import FaultyServer

TEXT = "Hello there, this goes on for a while."
BODY: dict[str, Any] = {"text": TEXT, "seed": 5, "max_new_tokens": 150}
SPEECH: dict[str, Any] = {"input": TEXT, "seed": 5, "max_new_tokens": 150, "response_format": "pcm"}
LONG = "Hello there, this goes on for a while, " * 20
ENGLISH = {"accept-language": "en"}
Piece = TypeVar("Piece")


@pytest.fixture
def server(faulty_server: FaultyServer) -> Iterator[FaultyServer]:
    """Nothing runs in it, before and after."""
    faulty_server.idle()
    yield faulty_server
    faulty_server.idle()


@pytest.fixture
def client(server: FaultyServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60, headers=ENGLISH) as client:
        yield client


@pytest.fixture
def right(client: httpx.Client) -> Iterator[Callable[[], None]]:
    """Says the same as ever, also at the end of the test."""
    sound = client.post("/generate", json=BODY).raise_for_status().json()["audio_base64"]

    def check() -> None:
        assert client.post("/generate", json=BODY).raise_for_status().json()["audio_base64"] == sound

    yield check
    check()


FAULTS = [("prefill", "error"), ("prefill", "memory"), ("decode", "error"), ("decode", "nan"), ("decode", "memory")]
FAULTS += [("codec", "error"), ("codec-thread", "error"), ("engine", "error")]


def broken(server: FaultyServer, point: str, answer: Iterator[Piece]) -> list[Piece]:
    """All that is answered when what makes it, held still so far, breaks once the first piece has come."""
    first = next(answer)
    server.control("break", point)
    server.control("free", point)
    return [first, *answer]


def session(server: FaultyServer) -> Iterator[Any]:
    """The messages of a WebSocket that speaks two sentences."""
    with connected(server.url) as socket:
        send(socket, "session.config", seed=5, max_new_tokens=200)
        send(socket, "input.text", text=f"{LONG}. {LONG}.")
        send(socket, "input.done")
        for message in socket:
            yield message if isinstance(message, bytes) else json.loads(message)


@pytest.mark.parametrize(("point", "kind"), FAULTS)
@pytest.mark.usefixtures("right")
def test_a_fault_before_the_first_sound(server: FaultyServer, client: httpx.Client, point: str, kind: str) -> None:
    for path, body in (("/generate", BODY), ("/generate-stream", BODY), ("/v1/audio/speech", SPEECH)):
        server.control("break", point, kind=kind)
        answer = client.post(path, json=body)
        assert answer.status_code == 500
        error = answer.json()["error"]
        assert error["code"] == "generation_failed"
        message = error.get("message") or answer.json()["message"]
        assert {"nan": "not finite", "memory": "(out of memory)", "error": "(RuntimeError)"}[kind] in message
        assert "injected" not in answer.text
        assert "Traceback" not in answer.text
        server.until_ready()


@pytest.mark.parametrize(("point", "after"), [("decode", 60), ("codec", 6), ("engine", 60)])
def test_a_fault_amid_the_sound(
    server: FaultyServer, client: httpx.Client, right: Callable[[], None], point: str, after: int
) -> None:
    """Whatever the transport, nobody takes the beginning for the whole."""
    long = {**BODY, "text": LONG, "max_new_tokens": 1_500}
    speech = {**SPEECH, "input": LONG, "max_new_tokens": 1_500}

    def hold() -> None:
        server.until_ready()
        server.control("hold", point, after=after)

    def told(path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        hold()
        with client.stream("POST", path, json=body) as answer:
            return broken(server, point, events(answer.iter_lines()))

    found = told("/generate-stream", long)
    assert "audio" in {event["type"] for event in found}
    assert [event["type"] for event in found[-2:]] == ["error", "[DONE]"]
    assert found[-2]["error"]["code"] == "generation_failed"
    assert "done" not in {event["type"] for event in found}

    for response_format in ("pcm", "mp3", "wav"):
        hold()
        with client.stream("POST", "/v1/audio/speech", json={**speech, "response_format": response_format}) as answer:
            assert answer.status_code == 200
            with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
                broken(server, point, answer.iter_raw())

    found = told("/v1/audio/speech", {**speech, "stream_format": "sse"})
    assert {event["type"] for event in found} == {"speech.audio.delta", "error"}
    assert found[-1]["type"] == "error"
    assert found[-1]["error"]["code"] == "generation_failed"

    hold()
    answered = session(server)
    messages = [next(answered), *broken(server, point, answered)]
    assert isinstance(messages[1], bytes)
    kinds = [message["type"] for message in messages if not isinstance(message, bytes)]
    if point == "engine":  # it may not be back yet for the next sentence
        assert kinds[:2] == ["audio.start", "error"]
    else:
        assert kinds == ["audio.start", "error", "audio.start", "audio.done", "session.done"]
    server.until_ready()
    right()


def test_an_engine_that_died_is_not_ready_until_it_is_back(
    server: FaultyServer, client: httpx.Client, right: Callable[[], None]
) -> None:
    server.control("hold", "begin")
    server.control("break", "engine")
    assert client.post("/generate", json=BODY).status_code == 500
    for answer in (client.get("/ready"), client.post("/generate", json=BODY)):
        assert answer.status_code == 503
        assert "died (RuntimeError)" in answer.json()["message"]
        assert int(answer.headers["retry-after"]) >= 1
    assert client.get("/health").status_code == 200
    assert client.get("/info").json()["status"] == "failed"
    server.control("free", "begin")
    server.until_ready()
    right()


def test_a_client_that_knows_no_chunks_sees_that_its_answer_was_cut_off(server: FaultyServer) -> None:
    url = httpx.URL(server.url)
    body = json.dumps({**SPEECH, "input": LONG, "max_new_tokens": 1_500}).encode()
    head = f"POST /v1/audio/speech HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    server.control("hold", "decode", after=60)
    with socket.create_connection((url.host, url.port or 80), timeout=60) as connection:
        connection.sendall(head.encode() + body)
        with pytest.raises(ConnectionResetError):
            broken(server, "decode", iter(lambda: connection.recv(65_536), b""))


def test_a_fault_of_the_embedded_voice(faulty_voice: FaultyServer) -> None:
    body = {"text": "One. Two. Three."}
    with httpx.Client(base_url=faulty_voice.url, timeout=60) as client:
        sound = client.post("/generate", json=body).raise_for_status().json()["audio_base64"]
        faulty_voice.control("break", "voice")
        answer = client.post("/generate", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "generation_failed")
        faulty_voice.control("break", "voice", after=2)
        found = list(events(client.post("/generate-stream", json=body).iter_lines()))
        assert "audio" in {event["type"] for event in found}
        assert [event["type"] for event in found[-2:]] == ["error", "[DONE]"]
        assert client.get("/ready").status_code == 200
        assert client.post("/generate", json=body).json()["audio_base64"] == sound
