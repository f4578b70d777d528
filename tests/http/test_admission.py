"""The queue before the model: bounded, fair, with deadlines, the same for every transport. The model is held still
meanwhile, so that nothing here depends on speed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from websockets.sync.client import ClientConnection

from answers import events
from conversing import connected, receive_until, send
from server_process import FaultyServer

BODY = {"text": "Hello there.", "seed": 5, "max_new_tokens": 30}
SPEECH = {"input": "Hello there.", "seed": 5, "max_new_tokens": 30, "response_format": "pcm"}
PATHS = {
    "generate": ("/generate", {"json": BODY}),
    "stream": ("/generate-stream", {"json": BODY}),
    "upload": ("/generate-upload", {"data": BODY, "files": {"none": b""}}),
    "speech": ("/v1/audio/speech", {"json": SPEECH}),
    "sse": ("/v1/audio/speech", {"json": {**SPEECH, "stream_format": "sse"}}),
}

STEPS_TO_SOUND = 30
"""More than the 20 after which the codec has its first window, and few: they must fit into a deadline."""


@pytest.fixture
def server(faulty_server: FaultyServer) -> Iterator[FaultyServer]:
    """Its model is held still, and nothing of other tests is left in it."""
    faulty_server.idle()
    faulty_server.control("hold", "prefill")
    yield faulty_server
    faulty_server.control("free", "prefill")
    faulty_server.idle()


class Callers:
    """Requests in threads of their own, which arrive in the order of their calls."""

    def __init__(self, server: FaultyServer, pool: ThreadPoolExecutor) -> None:
        self._server = server
        self._pool = pool
        self.requests: list[Future[httpx.Response]] = []

    def ask(self, caller: str, kind: str = "generate", **headers: str) -> Future[httpx.Response]:
        """Sends a request and waits until it runs or waits."""

        def request() -> httpx.Response:
            path, body = PATHS[kind]
            named = {"x-forwarded-for": caller, "accept-language": "en", **headers}
            return httpx.post(self._server.url + path, headers=named, timeout=120, **body)

        def seen(inside: dict[str, Any]) -> int:
            return inside["running"] + inside["waiting"] + sum(request.done() for request in self.requests)

        before = seen(self._server.inside())
        future = self._pool.submit(request)
        self.requests.append(future)
        self._server.until(lambda inside: seen(inside) > before)
        return future


@pytest.fixture
def callers(server: FaultyServer) -> Iterator[Callers]:
    with ThreadPoolExecutor(16) as pool:
        yield Callers(server, pool)
        server.control("free", "prefill")


@contextmanager
def session(server: FaultyServer, **headers: str) -> Iterator[ClientConnection]:
    """A WebSocket that has asked for one sentence."""
    with connected(server.url, additional_headers=headers) as socket:
        send(socket, "session.config", seed=5, max_new_tokens=30)
        send(socket, "input.text", text="Hello there. ")
        yield socket


def test_past_the_queue_every_transport_is_told_when_to_come_back(server: FaultyServer, callers: Callers) -> None:
    for number in range(5):
        callers.ask(f"10.0.0.{number}")
    inside = server.inside()
    assert (inside["running"], inside["waiting"], inside["speaking"]) == (2, 3, 2)
    for kind in PATHS:
        answer = callers.ask("10.0.0.9", kind).result(60)
        assert answer.status_code == 503
        error = answer.json()["error"]
        assert error["code"] == "overloaded"
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["retry-after"] in (error.get("message") or answer.json()["message"])
    with session(server) as socket:
        assert receive_until(socket, "error")[-1]["code"] == "overloaded"
    server.control("free", "prefill")
    wait(callers.requests)
    assert [request.result().status_code for request in callers.requests[:5]] == [200] * 5


def test_a_burst_of_one_client_leaves_room_for_others(server: FaultyServer, callers: Callers) -> None:
    burst = [callers.ask("10.0.1.1") for _ in range(5)]
    late = callers.ask("10.0.1.2", "stream")
    # It takes the seat of the burst's youngest.
    assert burst[-1].result(60).status_code == 503
    server.control("free", "prefill")
    wait(callers.requests)
    assert late.result().status_code == 200
    assert list(events(late.result().text.splitlines()))[-2]["type"] == "done"
    assert [request.result().status_code for request in burst[:4]] == [200] * 4


@pytest.mark.parametrize("kind", PATHS)
def test_a_deadline_that_passes_in_the_queue(server: FaultyServer, callers: Callers, kind: str) -> None:
    running = [callers.ask(f"10.0.2.{number}") for number in range(2)]
    before = server.inside()["calls"]
    late = callers.ask("10.0.2.9", kind, **{"x-request-timeout": "0.2"}).result(60)
    assert late.status_code == 504
    assert late.json()["error"]["code"] == "deadline_exceeded"
    assert "0.2 seconds" in late.text
    assert "retry-after" not in late.headers
    server.control("free", "prefill")
    wait(running)
    assert server.inside()["waiting"] == 0
    assert server.inside()["calls"]["prefill"] <= before["prefill"] + 2 * 10  # the pieces of two prompts


def test_a_deadline_that_passes_before_the_first_sound(server: FaultyServer, callers: Callers) -> None:
    for kind in PATHS:
        assert callers.ask("10.0.3.1", kind, **{"x-request-timeout": "0.2"}).result(60).status_code == 504
        # The step it was in is still held; nobody else waits for it.
        assert server.inside()["running"] == 0
    with session(server, **{"x-request-timeout": "0.2"}) as socket:
        assert receive_until(socket, "error")[-1]["code"] == "deadline_exceeded"


@pytest.mark.parametrize("given", ["soon", "0", "-1", "inf", "nan", ""])
def test_a_deadline_that_is_none(server: FaultyServer, given: str) -> None:
    answer = httpx.post(f"{server.url}/generate", json=BODY, headers={"x-request-timeout": given})
    assert answer.status_code == 422
    assert answer.json()["error"] == {"code": "invalid_request", "param": "x-request-timeout"}


def test_a_deadline_that_passes_amid_the_sound(faulty_server: FaultyServer) -> None:
    server = faulty_server
    long = {"seed": 5, "max_new_tokens": 1_500}
    text = "Hello there, and so on, " * 30
    server.idle()
    server.control("hold", "decode", after=STEPS_TO_SOUND)
    with httpx.Client(base_url=server.url, headers={"x-request-timeout": "4"}, timeout=60) as client:
        found = list(events(client.post("/generate-stream", json={**long, "text": text}).iter_lines()))
        assert "audio" in {event["type"] for event in found}
        assert [event["type"] for event in found[-2:]] == ["error", "[DONE]"]
        assert found[-2]["error"]["code"] == "deadline_exceeded"
        server.control("free", "decode")
        server.idle()
        server.control("hold", "decode", after=STEPS_TO_SOUND)
        body = {**long, "input": text, "response_format": "pcm"}
        with client.stream("POST", "/v1/audio/speech", json=body) as answer:
            assert answer.status_code == 200
            with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
                list(answer.iter_raw())
    server.control("free", "decode")
    server.idle()
