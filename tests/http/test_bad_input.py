"""Nothing a client sends takes the server down: the right status, the documented body, and it goes on serving."""

from __future__ import annotations

import json
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from answers import generated_samples
from higgs_server.audio import wav
from server_process import ServerProcess

HELLO = {"text": "Hello."}
BAD_NAMES = [
    "../belinda",
    "..",
    "a/../b",
    "/etc/passwd",
    "..\\x",
    "x/y",
    "belinda/",
    "a\x00b",
    "C:\\x",
    "%2e%2e",
    "~/.ssh*",
]


def refused(answer: httpx.Response, status: int, param: str | None = None) -> dict[str, Any]:
    body: dict[str, Any] = answer.json()
    assert answer.status_code == status, body
    assert body["success"] is False
    assert body["message"]
    assert "Traceback" not in answer.text
    assert set(body["error"]) == {"code", "param"}
    if param is not None:
        assert body["error"]["param"] == param
    return body


@pytest.fixture(params=["embedded_server", "native_server"])
def server(request: pytest.FixtureRequest) -> ServerProcess:
    process: ServerProcess = request.getfixturevalue(request.param)
    return process


@pytest.fixture(autouse=True)
def still_serving(client: httpx.Client) -> Any:
    yield
    assert client.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize("path", ["/generate", "/generate-stream"])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"text": ""}, "text"),
        ({"text": " \n\t "}, "text"),
        ({"text": None}, "text"),
        ({"text": 5}, "text"),
        ({"text": ["a"]}, "text"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "0.7"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": None}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": "many"}, "max_new_tokens"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 10**400}, "seed"),
        ({"ras_win_max_num_repeat": 0}, "ras_win_max_num_repeat"),
        ({"chunk_method": "area"}, "chunk_method"),
        ({"chunk_max_word_num": 0}, "chunk_max_word_num"),
        ({"chunk_max_num_turns": 0}, "chunk_max_num_turns"),
        ({"generation_chunk_buffer_size": -1}, "generation_chunk_buffer_size"),
        ({"ref_audio": ["belinda"]}, "ref_audio"),
        ({"scene_prompt": {}}, "scene_prompt"),
    ],
)
def test_fields_out_of_range_or_of_the_wrong_type(
    client: httpx.Client, path: str, fields: dict[str, Any], param: str
) -> None:
    body = json.dumps({**HELLO, **fields})
    refused(client.post(path, content=body, headers={"content-type": "application/json"}), 422, param)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("field", ["temperature", "top_p"])
def test_numbers_that_are_none(client: httpx.Client, field: str, value: str) -> None:
    body = f'{{"text": "Hello.", "{field}": {value}}}'
    answer = client.post("/generate", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    refused(answer, answer.status_code)
    form = {"text": "Hello.", field: value}
    refused(client.post("/generate-upload", data=form, files={"x": (None, "")}), 422, field)


def test_text_is_required(client: httpx.Client) -> None:
    refused(client.post("/generate", json={}), 422, "text")
    refused(client.post("/generate-upload", files={"seed": (None, "1")}), 422, "text")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"text": "a"',
        b"[" * 100_000,
        b'{"text": "\\ud800"}',
        b"a=1",
    ],
)
def test_broken_json(client: httpx.Client, body: bytes) -> None:
    answer = client.post("/generate", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    refused(answer, answer.status_code)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/xml", ""])
def test_wrong_content_type(client: httpx.Client, content_type: str) -> None:
    headers = {"content-type": content_type}
    body = b'{"text": "Hello."}'
    for path in ("/generate", "/generate-stream", "/generate-upload"):
        refused(client.post(path, content=body, headers=headers), 415)


def test_broken_forms(client: httpx.Client) -> None:
    for content_type in ("multipart/form-data", "multipart/form-data; boundary=x"):
        answer = client.post("/generate-upload", content=b"--y\r\nnonsense", headers={"content-type": content_type})
        assert answer.status_code in (400, 422)
        refused(answer, answer.status_code)
    refused(
        client.post("/generate-upload", files={"text": (None, "a"), "chunk_method": (None, "b")}), 422, "chunk_method"
    )
    many = {f"field{n}": (None, "x") for n in range(200)}
    refused(client.post("/generate-upload", files=many), 400)


def test_too_long_a_text(client: httpx.Client) -> None:
    megabyte = "word " * 200_000
    refused(client.post("/generate", json={"text": megabyte}), 413, "text")
    refused(client.post("/generate-stream", json={"text": megabyte}), 413, "text")


def test_a_body_beyond_its_limit_is_refused_before_it_is_read(server: ServerProcess) -> None:
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(
            b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9999999999\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_chunked_body_beyond_its_limit(client: httpx.Client) -> None:
    chunks = (b"x" * 2**20 for _ in range(40))
    refused(client.post("/generate", content=chunks, headers={"content-type": "application/json"}), 413)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_are_names(client: httpx.Client, name: str) -> None:
    for field in ("ref_audio", "scene_prompt"):
        refused(client.post("/generate", json={**HELLO, field: name}), 422, field)
    refused(client.post("/generate", json={**HELLO, "ref_audio": f"belinda,{name}"}), 422, "ref_audio")
    refused(client.post("/generate", json={**HELLO, "ref_audio": f"profile:{name}"}), 422, "ref_audio")


def test_unknown_names_are_answered_with_those_that_exist(client: httpx.Client) -> None:
    assert (
        "belinda"
        in refused(client.post("/generate", json={**HELLO, "ref_audio": "nobody"}), 404, "ref_audio")["message"]
    )
    assert "quiet_indoor" in refused(client.post("/generate", json={**HELLO, "scene_prompt": "moon"}), 404)["message"]
    profile = client.post("/generate", json={**HELLO, "ref_audio": "profile:nobody"})
    assert "male_en_british" in refused(profile, 404, "ref_audio")["message"]


def test_what_the_embedded_voice_cannot_say_or_assign_is_named(embedded_server: ServerProcess) -> None:
    dialogue = {"text": "[SPEAKER0] One.\n[SPEAKER2] Three.", "ref_audio": "belinda,chadwick"}
    with httpx.Client(base_url=embedded_server.url) as client:
        refused(client.post("/generate", json={"text": "🙂🙂"}), 422, "text")
        assert "SPEAKER2" in refused(client.post("/generate", json=dialogue), 422)["message"]


def test_unknown_paths_and_methods(client: httpx.Client) -> None:
    refused(client.get("/nothing-here"), 404)
    refused(client.get("/generate"), 405)
    refused(client.delete("/voices"), 405)


def tone(seconds: float) -> bytes:
    time = np.arange(int(24_000 * seconds)) / 24_000
    return wav.encode((0.25 * np.sin(2 * np.pi * 220 * time)).astype(np.float32))


@pytest.mark.parametrize(
    ("clip", "status"),
    [
        (b"", 415),
        (b"not audio at all", 415),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", 415),
        (b"OggS" + bytes(500), 415),
        (b"\xff\xfb" + bytes(2_000), 415),
        (b"ID3" + b"\xff" * 3_000, 415),
        (b"fLaC" + bytes(3_000), 415),
        (b"\x00\x00\x00\x20ftypM4A " + bytes(3_000), 415),
        (b"\x1aE\xdf\xa3" + bytes(3_000), 415),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", 415),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", 415),
        (tone(0.1)[:44], 415),
        (tone(61), 413),
        (b"RIFF" + bytes(25 * 2**20), 413),
    ],
)
def test_clips_that_are_no_clips(client: httpx.Client, clip: bytes, status: int) -> None:
    files = {"ref_audio_file": ("clip.wav", clip)}
    refused(client.post("/generate-upload", data=HELLO, files=files), status, "ref_audio_file")


def test_a_transcript_that_is_no_text(client: httpx.Client) -> None:
    files = {"ref_audio_file": ("a.wav", tone(1)), "ref_text_file": ("a.txt", b"\xff\xfe\x00")}
    refused(client.post("/generate-upload", data=HELLO, files=files), 422, "ref_text_file")
    refused(client.post("/generate-upload", data={**HELLO, "ref_audio_file": "text"}), 415)


def test_it_speaks_after_all_that(client: httpx.Client) -> None:
    assert len(generated_samples(client.post("/generate", json=HELLO).raise_for_status().json()))
