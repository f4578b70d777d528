"""A client that goes away, over any transport and at any moment: its turn is free at once, its slot after the step that
is under way, and nothing more is done for it. The model is held still at the moment in question."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import numpy as np
import pytest

from conversing import connected, send
from higgs_server.audio import wav
from server_process import FaultyServer

TEXT = "Hello there, and so on, " * 30
FIELDS = {"seed": 5, "max_new_tokens": 1_500}
NATIVE, OPENAI = {**FIELDS, "text": TEXT}, {**FIELDS, "input": TEXT}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "generate": ("/generate", {"json": NATIVE}),
    "stream": ("/generate-stream", {"json": NATIVE}),
    "upload": ("/generate-upload", {"data": NATIVE, "files": {"none": b""}}),
    "pcm": ("/v1/audio/speech", {"json": {**OPENAI, "response_format": "pcm"}}),
    "mp3": ("/v1/audio/speech", {"json": OPENAI}),
    "sse": ("/v1/audio/speech", {"json": {**OPENAI, "stream_format": "sse"}}),
}
TRANSPORTS = [*REQUESTS, "websocket", "websocket that is done"]
MOMENTS = [("prefill", 0), ("decode", 0), ("decode", 60), ("codec", 0)]
"""Before the call after so many of what holds the model; after 60 steps there is sound."""


@pytest.fixture
def server(faulty_server: FaultyServer) -> Iterator[FaultyServer]:
    """Nothing runs in it, before and after."""
    faulty_server.idle()
    yield faulty_server
    faulty_server.idle()


@contextmanager
def asking(server: FaultyServer, transport: str) -> Iterator[None]:
    """A client that has sent its request, and is gone at the end of the block without a word."""
    if transport in REQUESTS:
        with sending(server, *REQUESTS[transport]):
            yield
        return
    with connected(server.url) as session:
        send(session, "session.config", **FIELDS)
        send(session, "input.text", text=f"{TEXT}. Next")
        if transport == "websocket that is done":
            send(session, "input.done")
        yield
        with suppress(OSError):  # the server may have ended it
            session.socket.shutdown(socket.SHUT_RDWR)


@contextmanager
def sending(server: FaultyServer, path: str, body: dict[str, Any]) -> Iterator[None]:
    url = httpx.URL(server.url)
    request = httpx.Request("POST", server.url + path, **body)
    content = request.read()
    head = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in request.headers.items())]
    with socket.create_connection((url.host, url.port or 80)) as connection:
        connection.sendall("\r\n".join([*head, "", ""]).encode() + content)
        yield


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("point", "after"), MOMENTS)
def test_who_leaves_frees_its_turn_at_once_and_its_slot_with_the_step(
    server: FaultyServer, transport: str, point: str, after: int
) -> None:
    before = server.inside()["calls"].get(point, 0)
    server.control("hold", point, after=after)
    with asking(server, transport):
        server.until(lambda inside: inside["calls"].get(point, 0) > before + after)
        assert server.inside()["running"] == 1
    server.until(lambda inside: inside["running"] == inside["waiting"] == inside["speaking"] == 0)
    if point == "codec":  # the engine does not wait for it
        server.until(lambda inside: inside["slots"] == 0)
    server.control("free", point)
    server.idle()
    # The step it was in; of a prompt, the pieces of one round.
    assert server.inside()["calls"][point] - before - after <= (2 if point == "prefill" else 1)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_who_leaves_the_queue_is_never_spoken_for(server: FaultyServer, transport: str) -> None:
    server.control("hold", "prefill")
    with ThreadPoolExecutor(2) as pool:
        body = {**NATIVE, "text": "Hello.", "max_new_tokens": 10}
        running = [pool.submit(httpx.post, f"{server.url}/generate", json=body, timeout=60) for _ in range(2)]
        server.until(lambda inside: inside["running"] == 2)
        with asking(server, transport):
            server.until(lambda inside: inside["waiting"] == 1)
        server.until(lambda inside: inside["waiting"] == 0)
        assert server.inside()["speaking"] == 2
        server.control("free", "prefill")
        assert [answer.result().status_code for answer in running] == [200, 200]


def test_who_leaves_while_its_clip_is_read_is_never_spoken_for(server: FaultyServer) -> None:
    clip = wav.encode(np.sin(np.arange(24_000) / 20).astype(np.float32))
    calls = server.inside()["calls"]
    body = {"data": NATIVE, "files": {"ref_audio_file": ("clip.wav", clip)}, "headers": {"x-request-id": "clip-leaver"}}
    server.control("hold", "encode")
    with sending(server, "/generate-upload", body):
        server.until(lambda inside: inside["calls"].get("encode", 0) == calls.get("encode", 0) + 1)
    server.until(lambda inside: inside["running"] == 0)
    server.control("free", "encode")
    server.wait_for(r"\[clip-leaver\] higgs_server\.access: POST /generate-upload (499|closed)")
    server.idle()
    assert server.inside()["calls"].get("prefill", 0) == calls.get("prefill", 0)


def test_nothing_is_left_behind(server: FaultyServer) -> None:
    """Threads and files are as many after a hundred who leave as before."""

    def leave(number: int) -> None:
        with asking(server, TRANSPORTS[number % len(TRANSPORTS)]):
            if number % 3:
                server.inside()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(leave, range(16)))
        server.idle()
        before = server.inside()
        list(pool.map(leave, range(100)))
        server.idle()
    after = server.inside()
    assert sorted(after["threads"]) == sorted(before["threads"])
    assert after["files"] <= before["files"] + 4
