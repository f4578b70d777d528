"""Slow clients are cut off, headers have limits, and the server ends in order: with what it has begun, or at once."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from answers import events, rest_of
from conversing import connected, receive_until, send
from server_process import FaultyServer, ServerProcess

LONG = {"text": "This is one of very many sentences that are all alike. " * 300, "chunk_method": "word"}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """It is patient with slow clients for a second."""
    with ServerProcess(["--model-path", "embedded", "--client-timeout", "1"]) as process:
        process.wait_ready()
        yield process


@contextmanager
def connection(server: ServerProcess, **options: int) -> Iterator[socket.socket]:
    url = httpx.URL(server.url)
    with socket.socket() as raw:
        raw.settimeout(60)
        for name, value in options.items():
            raw.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        raw.connect((url.host, url.port or 80))
        yield raw


def assert_healthy(raw: socket.socket) -> None:
    raw.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    found = b""
    while b'"ok"' not in found:
        piece = raw.recv(65_536)
        assert piece
        found += piece


HEAD = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


PART = HEAD + b"Content-Length: 100\r\n\r\n{"


@pytest.mark.parametrize("sent", [b"", HEAD, PART, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" + PART])
def test_a_request_that_does_not_come_is_not_waited_for(server: ServerProcess, sent: bytes) -> None:
    with connection(server) as raw:
        raw.sendall(sent)
        assert b"HTTP/1.1 408 " in rest_of(raw)


def test_a_request_in_drops_is_cut_off_and_one_that_flows_is_not(server: ServerProcess) -> None:
    with connection(server) as slow, connection(server) as idle:
        assert_healthy(idle)
        slow.sendall(HEAD + b"Content-Length: 1000000\r\n\r\n")
        slow.settimeout(0.1)
        while True:
            try:
                answer = slow.recv(65_536)
                break
            except TimeoutError:
                slow.sendall(b" ")
        assert answer.startswith(b"HTTP/1.1 408 ")
        # Between two requests there is nothing to wait for; longer than patience has passed.
        assert_healthy(idle)
    body = json.dumps({"text": "Hello."}).encode() + b" " * 12_000

    def flow() -> Iterator[bytes]:
        for start in range(0, len(body), 3_000):
            yield body[start : start + 3_000]
            time.sleep(0.4)  # 7 kB a second, for longer than patience

    answer_to_flow = httpx.post(
        f"{server.url}/generate", content=flow(), headers={"content-type": "application/json"}, timeout=60
    )
    assert answer_to_flow.status_code == 200


@pytest.mark.parametrize("path", ["/generate-stream", "/v1/audio/speech", "websocket"])
def test_who_never_reads_is_cut_off(server: ServerProcess, path: str) -> None:
    name = path.replace("/", "-").strip("-")
    if path == "websocket":
        with (
            connection(server, SO_RCVBUF=4096) as raw,
            connected(server.url, sock=raw, max_queue=1, close_timeout=1) as session,
        ):
            send(session, "input.text", text=LONG["text"])
            server.wait_for(r"SENTENCE .* cancelled", 60)
        return
    body = json.dumps(
        LONG if path == "/generate-stream" else {"input": LONG["text"], "response_format": "pcm"}
    ).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-Request-Id: {name}\r\n"
    with connection(server, SO_RCVBUF=4096) as raw:
        raw.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        server.wait_for(rf"\[{name}\] higgs_server\.access: .* cancelled", 60)
        with pytest.raises(ConnectionResetError):  # nobody takes a part for the whole, in HTTP/1.0 neither
            rest_of(raw)
    assert httpx.post(f"{server.url}/generate", json={"text": "Hello."}, timeout=60).status_code == 200


def test_a_session_may_be_silent_for_longer_than_patience(server: ServerProcess) -> None:
    with connected(server.url) as session:
        time.sleep(2)
        send(session, "input.text", text="Hello there. And")
        assert receive_until(session, "audio.done")[0]["type"] == "audio.start"


def test_headers_have_limits(server: ServerProcess) -> None:
    many = {f"x-{number}": "1" for number in range(101)}
    for headers in (many, {"x-long": "a" * 40_000}):
        answer = httpx.get(f"{server.url}/health", headers=headers)
        # What does not fit one read is refused before it is understood.
        assert answer.status_code == 431 or (answer.status_code == 400 and len(headers) == 1)
    assert httpx.get(f"{server.url}/health", headers=dict(list(many.items())[:80])).status_code == 200


class Ending:
    """A server with a held voice that is told to end while a stream and a session are in the middle."""

    def __init__(self, server: FaultyServer, pool: ThreadPoolExecutor) -> None:
        self._server = server
        server.control("hold", "voice", after=4)
        self.streamed = pool.submit(self._stream)
        server.until(lambda inside: inside["calls"].get("voice", 0) > 4 and inside["running"] == 1)
        self.said = pool.submit(self._session)
        server.until(lambda inside: inside["running"] == 2)
        self.waited = pool.submit(self._wait)
        server.until(lambda inside: inside["waiting"] == 1)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("Waiting for connections to close")
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/ready")

    def free(self) -> None:
        self._server.process.send_signal(signal.SIGUSR1)

    def _stream(self) -> list[dict[str, Any]]:
        """Asks once more on the same connection: it could not know that the server ends."""
        body = {"text": "One. Two. Three. Four. Five. Six. Seven."}
        with httpx.Client(base_url=self._server.url, timeout=60) as client:
            with client.stream("POST", "/generate-stream", json=body) as answer:
                found = list(events(answer.iter_lines()))
            self.asked_again = client.post("/generate", json=body)
            return found

    def _wait(self) -> httpx.Response:
        body = {"input": "Hello.", "response_format": "wav"}
        return httpx.post(f"{self._server.url}/v1/audio/speech", json=body, timeout=60)

    def _session(self) -> list[Any]:
        found: list[Any] = []
        with connected(self._server.url) as session:
            send(session, "input.text", text="Hello there. How are you? And")
            try:
                while True:
                    message = session.recv(timeout=60)
                    found.append("sound" if isinstance(message, bytes) else json.loads(message))
            except ConnectionClosed as closed:
                found.append(closed.rcvd.code if closed.rcvd else None)
        return found


@contextmanager
def ending(*arguments: str) -> Iterator[tuple[FaultyServer, Ending]]:
    with FaultyServer(["--model-path", "embedded", "--max-running", "2", *arguments]) as server:
        server.wait_ready()
        with ThreadPoolExecutor(3) as pool:
            yield server, Ending(server, pool)


def test_sigterm_finishes_what_has_begun() -> None:
    with ending() as (server, end):
        end.free()
        assert [event["type"] for event in end.streamed.result(60)[-2:]] == ["done", "[DONE]"]
        assert end.asked_again.status_code == 200
        assert end.asked_again.headers["connection"] == "close"
        assert end.waited.result(60).status_code == 200
        said = end.said.result(60)
        kinds = [message["type"] for message in said if isinstance(message, dict)]
        assert kinds == ["audio.start", "audio.done", "audio.start", "audio.done", "error"]
        assert said[-2]["code"] == "not_ready"
        assert said[-1] == 1012
        assert server.process.wait(60) == 0, server.log
    assert "Traceback" not in server.log


@pytest.mark.parametrize("said", [0, 1])
def test_a_session_whose_text_is_not_at_its_end_is_not_done_as_the_server_ends(said: int) -> None:
    with ServerProcess(["--model-path", "embedded"]) as server:
        server.wait_ready()
        with connected(server.url) as session:
            for _ in range(said):
                send(session, "input.text", text="Hello there. ")
                receive_until(session, "audio.done")
            server.process.send_signal(signal.SIGTERM)
            assert json.loads(session.recv(timeout=60))["code"] == "not_ready"
            with pytest.raises(ConnectionClosed) as closed:
                session.recv(timeout=60)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012
        assert server.process.wait(60) == 0


def test_what_does_not_finish_in_time_is_cut_off() -> None:
    with ending("--shutdown-timeout", "1") as (server, end):
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
            end.streamed.result(60)
        assert "session.done" not in str(end.said.result(60))
        waited = end.waited.result(60)
        assert (waited.status_code, waited.json()["error"]["code"]) == (503, "not_ready")
        assert waited.headers["x-request-id"]
        server.wait_for(r"POST /v1/audio/speech 503 .* not_ready")
        end.free()
        assert server.process.wait(60) == 0, server.log


@pytest.mark.parametrize("turn", range(3))
def test_a_server_that_is_stopped_while_it_loads_ends_in_order(turn: int) -> None:
    with ServerProcess(["--model-path", "embedded"]) as server:
        assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0, server.log


def test_a_second_signal_ends_it_at_once() -> None:
    with ending() as (server, end):
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 128 + signal.SIGTERM
        with pytest.raises(httpx.RemoteProtocolError):
            end.streamed.result(60)
