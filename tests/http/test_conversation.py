"""The WebSocket for voice agents: sentences are spoken as they become complete, and closing ends everything."""

from __future__ import annotations

import json
import socket as sockets
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection

from answers import generated_samples
from conversing import connected, of_type, receive_until, say, send, sound
from decoders import decode
from metrics_of import idle_metrics
from server_process import KEY, FaultyServer, ServerProcess

SESSIONS = 8


@pytest.fixture
def socket(server: ServerProcess) -> Iterator[ClientConnection]:
    with connected(server.url) as socket:
        yield socket


def sentences(messages: list[Any]) -> list[str]:
    return [message["sentence_text"] for message in of_type(messages, "audio.start")]


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
    assert first[-1] == {"type": "audio.done", "sentence_index": 0}
    assert all(isinstance(message, bytes) for message in first[1:-1])
    send(socket, "input.text", text=" are you?")
    send(socket, "input.done")
    rest = receive_until(socket, "session.done")
    assert sentences(rest) == ["How are you?"]
    assert rest[-1] == {"type": "session.done"}
    spoken = np.frombuffer(sound(first), "<i2")
    answer = client.post("/generate", json={"text": "Hello there, Dr. Smith.", "ref_audio": "belinda"}).json()
    assert np.array_equal(spoken, generated_samples(answer))


def test_chinese_is_spoken_sentence_by_sentence_as_its_characters_come(socket: ClientConnection) -> None:
    send(socket, "session.config", voice="zh_woman")
    for character in "你好。":
        send(socket, "input.text", text=character)
    assert sentences(receive_until(socket, "audio.done")) == ["你好。"]
    for character in "他说：“好！”":
        send(socket, "input.text", text=character)
    send(socket, "input.done")
    assert sentences(receive_until(socket, "session.done")) == ["他说：“好！"]


def test_a_text_that_never_ends_is_spoken_all_the_same(socket: ClientConnection) -> None:
    words = [f"and number {n}" for n in range(60)]
    send(socket, "session.config", voice="belinda")
    for word in words:
        send(socket, "input.text", text=f"{word} ")
    found = receive_until(socket, "audio.done")  # input.done has not been sent
    send(socket, "input.done")
    found += receive_until(socket, "session.done")
    assert " ".join(sentences(found)) == " ".join(words)
    assert len(sentences(found)) == 2


def test_what_has_no_words_is_no_sentence(socket: ClientConnection) -> None:
    assert say(socket, " ", "\n\n", "…", "🙂 ", "”", "\u200b", voice="belinda") == [{"type": "session.done"}]


def test_each_sentence_is_spoken_as_configured_when_it_was_complete(socket: ClientConnection) -> None:
    for form, text in (("flac", "One. "), ("mp3", "Two. "), ("pcm", "Three. ")):
        send(socket, "session.config", voice={"id": "nova"}, response_format=form)
        send(socket, "input.text", text=text)
    send(socket, "input.done")
    for form, text in (("flac", "One."), ("mp3", "Two."), ("pcm", "Three.")):
        found = receive_until(socket, "audio.done")
        assert (found[0]["format"], found[0]["sentence_text"]) == (form, text)  # type: ignore[index]
        assert len(decode(sound(found), form)) > 5_000  # a file of its own


def test_mistakes_are_told_and_the_session_goes_on(socket: ClientConnection) -> None:
    for message in ("{", "[]", "{}", '{"type": 5}', '{"type": "dance"}', '{"type": "input.text", "text": 5}'):
        socket.send(message)
        assert receive_until(socket, "error")[-1]["message"]
    for message in (
        b"\x00\x01",
        b'{"type": "session.close"}',
        "[" * 100_000,
        '{"type": "input.text", "text": "\\ud800"}',
    ):
        socket.send(message)
        assert receive_until(socket, "error")[-1]["code"] == "malformed_body"
    send(socket, "session.config", speed=99)
    assert receive_until(socket, "error")[-1]["param"] == "speed"
    send(socket, "input.text", text="x" * 100_001)
    assert receive_until(socket, "error")[-1]["code"] == "too_large"
    send(socket, "session.config", voice="nobody")
    send(socket, "input.text", text="Hello. ")
    error = receive_until(socket, "error")[-1]
    assert "belinda" in error["message"]
    assert (error["param"], error["sentence_index"]) == ("voice", 0)
    assert any(isinstance(message, bytes) for message in say(socket, "Hello.", voice="belinda"))


def test_clips_that_wait_for_their_sentences_are_bounded(faulty_server: FaultyServer) -> None:
    clip = "data:audio/wav;base64," + "A" * 10_000_000
    faulty_server.control("hold", "prefill")
    try:
        with connected(faulty_server.url) as session:
            send(session, "input.text", text="One. An")
            for number in (1, 2, 2, 3, 2):  # each is held for its sentence, and 25 MB may be
                send(session, "session.config", ref_audio=f"{clip}{number}")
                send(session, "input.text", text="d on. An")
            send(session, "session.config", speed="slow")
            refused = [receive_until(session, "error")[-1] for _ in range(2)]
            assert [(error["code"], error["param"]) for error in refused] == [
                ("too_large", "ref_audio"),
                ("invalid_request", "speed"),
            ]
    finally:
        faulty_server.control("free", "prefill")


def test_input_done_is_the_end_of_the_text(socket: ClientConnection) -> None:
    send(socket, "session.config", voice="belinda")
    send(socket, "input.text", text="There is much to say before this is over. " * 20)
    for kind in ("input.done", "input.text", "input.done"):
        send(socket, kind, text="More. ")
    found = receive_until(socket, "session.done")
    assert [error["param"] for error in of_type(found, "error")] == ["type", "type"]
    assert len(sentences(found)) == 20


def test_the_handshake_has_the_id_that_the_log_has(server: ServerProcess, socket: ClientConnection) -> None:
    assert socket.response
    request_id = socket.response.headers["x-request-id"]
    say(socket, "Yes.", voice="belinda")
    server.wait_for(rf"\[{request_id}\.0\].* SENTENCE .* ok")


def close(socket: ClientConnection) -> None:
    send(socket, "session.close")
    for _ in socket:  # what was under way, then the end
        pass


def kill(socket: ClientConnection) -> None:
    socket.socket.shutdown(sockets.SHUT_RDWR)  # no farewell of the WebSocket's


@pytest.mark.parametrize("complete", [False, True], ids=["more-to-come", "after-input.done"])
@pytest.mark.parametrize("end", [close, kill])
def test_ending_in_the_middle_frees_everything(native_server: ServerProcess, end: Any, complete: bool) -> None:
    """Slot and threads, on a model that would go on for minutes."""
    process = psutil.Process(native_server.process.pid)

    def session() -> None:
        with connected(native_server.url) as socket:
            assert socket.response
            request_id = socket.response.headers["x-request-id"]
            send(socket, "input.text", text="This goes on and on without an end in sight, as it seems. " * 200)
            if complete:
                send(socket, "input.done")
            receive_until(socket, "audio.start")
            end(socket)
        native_server.wait_for(rf"\[{request_id}\].* WEBSOCKET ")

    session()
    idle_metrics(native_server.url)
    threads = process.num_threads()
    for _ in range(SESSIONS):
        session()
    idle_metrics(native_server.url)
    # A pool may have grown by a few; what a session left behind would be there for each of them.
    until = time.monotonic() + 60
    while process.num_threads() >= threads + SESSIONS:
        assert time.monotonic() < until, f"{threads} threads, then {process.num_threads()}"
        time.sleep(0.05)


def test_the_key_is_asked_for_here_too(keyed_server: ServerProcess) -> None:
    with pytest.raises(InvalidStatus) as error, connected(keyed_server.url):
        pass
    refused = error.value.response
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert json.loads(refused.body)["error"]["code"] == "unauthorized"
    keyed_server.wait_for(rf"\[{refused.headers['x-request-id']}\].* WEBSOCKET .* 401 ")
    with connected(keyed_server.url, additional_headers={"Authorization": f"Bearer {KEY}"}) as socket:
        send(socket, "session.close")
    keyed_server.wait_for(r" WEBSOCKET .* 101 ")
    assert "ERROR" not in keyed_server.log
