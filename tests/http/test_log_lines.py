"""What a real server writes into its log about real requests: one line each, and nothing of what users say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from conversing import connected, say, send
from server_process import ServerProcess

MARK = "Quincunx"
"""A word that only users say."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Of its own, writing JSON."""
    file = tmp_path_factory.mktemp("logs") / "server.log"
    with ServerProcess(["--model-path", "embedded", "--log-format", "json", "--log-file", str(file)]) as process:
        process.wait_for("ready: embedded")
        yield process


def test_every_line_is_json_and_none_has_what_users_said(client: httpx.Client, server: ServerProcess) -> None:
    body = {"text": f"{MARK}.", "instructions": MARK, "ref_text": MARK}
    for path in ("/generate", "/generate-stream"):
        client.post(path, json=body)
        client.post(path, json={**body, "ref_audio": MARK})
        client.post(path, json={**body, "temperature": MARK})
        client.post(path, json={**body, "scene_prompt": MARK})
    client.post("/v1/audio/speech", json={"input": f"{MARK}.", "voice": MARK, "instructions": MARK})
    client.post("/v1/audio/speech", json={"input": f"{MARK}.", "ref_audio": f"data:audio/wav;base64,{MARK}"})
    client.post("/generate-upload", data={"text": MARK, "ref_text": MARK}, files={"ref_audio_file": (MARK, b"x")})
    client.post("/generate", content=f"{{{MARK}".encode(), headers={"content-type": "application/json"})
    with connected(server.url) as socket:
        send(socket, MARK)
        say(socket, f"{MARK}.")
    server.wait_for('"status": 101')  # the session's line, after its sentence's
    client.get("/last", headers={"x-request-id": "the-last"})
    server.wait_for('"request_id": "the-last"')
    lines = [json.loads(line) for line in server.lines]
    assert MARK.lower() not in server.log.lower()
    asked = [line["path"] for line in lines if line["logger"] == "higgs_server.access"]
    assert asked.count("/generate") == 5
    assert asked.count("/generate-stream") == 4
    assert asked.count("/v1/audio/speech/stream") == 2
    file = Path(server.arguments[-1])
    assert [json.loads(line) for line in file.read_text().splitlines()] == lines


def test_no_client_writes_a_line_of_its_own(client: httpx.Client, server: ServerProcess) -> None:
    client.get("/x%0A{%22forged%22:1}", headers={"x-request-id": "forged-1", "traceparent": "a\tb", "user-agent": MARK})
    client.get("/x%E2%80%A8y", headers={"x-request-id": "forged\u00852".encode()})  # type: ignore[dict-item]
    client.get("/last", headers={"x-request-id": "the-very-last"})
    server.wait_for('"request_id": "the-very-last"')
    for line in server.log.splitlines():
        assert json.loads(line)["logger"]
