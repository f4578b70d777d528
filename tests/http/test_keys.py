"""Keys with names, limits for each of them, and web pages of other origins."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import yaml
from websockets.exceptions import InvalidStatus

from conversing import connected, of_type, say
from server_process import ServerProcess

ROOT = Path(__file__).resolve().parents[2]
ORIGIN = "https://studio.example"
RATE = 12


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    file.write_text("# two programs\nalice:a-key\nbob:b-key\ncarol:c-key\ndave:d-key\n")
    arguments = ["--model-path", "embedded", "--api-key-file", str(file), "--api-key", "first,second"]
    arguments += ["--rate-limit", str(RATE), "--max-concurrent", "2", "--cors-origins", ORIGIN]
    with ServerProcess(arguments) as process:
        process.wait_ready()
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60, headers={"accept-language": "en"}) as client:
        yield client


def key(value: str) -> dict[str, str]:
    return {"authorization": f"Bearer {value}"}


def test_every_key_opens_and_the_log_knows_its_name(server: ServerProcess, client: httpx.Client) -> None:
    for value, name in (("a-key", "alice"), ("b-key", "bob"), ("first", "key-1"), ("second", "key-2")):
        assert client.get("/info", headers={**key(value), "x-request-id": f"of-{name}"}).status_code == 200
        assert f"caller={name}" in server.wait_for(rf"\[of-{name}\] higgs_server\.access")
    for wrong in ("a-ke", "a-key2", "alice", "alice:a-key", "first,second"):
        assert client.get("/info", headers=key(wrong)).status_code == 401
    assert not any(secret in server.log for secret in ("a-key", "b-key", "second"))


def test_the_probe_for_kubernetes_gets_in_by_one_of_the_keys(server: ServerProcess) -> None:
    documents = yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text())
    pods = next(item for item in documents if item["kind"] == "Deployment")["spec"]["template"]
    (container,) = pods["spec"]["containers"]
    python, *arguments, program = container["readinessProbe"]["exec"]["command"]
    assert python == "python"
    program = program.replace("http://127.0.0.1:8000", server.url)
    for keys, ready in (("first,second", True), (" second , first", True), ("neither,first", False), ("", False)):
        probe = subprocess.run(
            [sys.executable, *arguments, program], env={"HIGGS_SERVER_API_KEY": keys}, capture_output=True
        )
        assert (probe.returncode == 0) is ready, probe.stderr


def test_a_caller_s_minute(server: ServerProcess, client: httpx.Client) -> None:
    for _ in range(RATE):
        assert client.post("/generate", content=b"{", headers=key("a-key")).status_code in (400, 415)
        assert client.get("/voices", headers=key("a-key")).status_code == 200  # costs nothing
    refused = client.post("/generate", json={"text": "Hello."}, headers=key("a-key"))
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "rate_limit"
    assert 1 <= int(refused.headers["retry-after"]) <= 60 / RATE
    refused = client.post("/v1/audio/speech", json={"input": "Hello."}, headers=key("a-key"))
    assert refused.status_code == 429
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert "retry-after" in refused.headers
    assert client.post("/generate", json={"text": "Hello."}, headers=key("b-key")).status_code == 200


def test_each_sentence_of_a_session_counts(server: ServerProcess) -> None:
    with connected(server.url, additional_headers=key("c-key")) as session:
        messages = say(session, *(f"Number {number}. " for number in range(RATE + 1)))
    assert len(of_type(messages, "audio.done")) == RATE
    assert [error["code"] for error in of_type(messages, "error")] == ["rate_limit"]


def test_so_many_at_the_same_time(server: ServerProcess, client: httpx.Client) -> None:
    url = httpx.URL(server.url)
    head = b"POST /generate HTTP/1.1\r\nHost: x\r\nX-Api-Key: d-key\r\nContent-Type: application/json\r\n"
    with ExitStack() as stack:
        for _ in range(2):
            connection = stack.enter_context(socket.create_connection((url.host, url.port or 80)))
            connection.sendall(head + b"Content-Length: 9\r\nExpect: 100-continue\r\n\r\n")
            assert connection.recv(1_000).startswith(b"HTTP/1.1 100 ")  # it waits for the body
        refused = client.post("/plan", json={"text": "Hello."}, headers=key("d-key"))
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limit"
        assert refused.headers["retry-after"] == "1"
        with pytest.raises(InvalidStatus) as error, connected(server.url, additional_headers=key("d-key")):
            pass
        assert error.value.response.status_code == 429
        assert error.value.response.headers["retry-after"] == "1"
        assert json.loads(error.value.response.body)["error"]["type"] == "rate_limit_error"
        assert client.post("/plan", json={"text": "Hello."}, headers=key("b-key")).status_code == 200
    # Both are gone, and their places free as soon as the server has noticed.
    while sum("POST /generate closed" in line for line in list(server.lines)) < 2:
        server.wait_for_news()
    assert client.post("/plan", json={"text": "Hello."}, headers=key("d-key")).status_code == 200


def test_a_page_of_an_allowed_origin_hears_every_answer(client: httpx.Client) -> None:
    ask = {"origin": ORIGIN, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    allowed = client.options("/generate", headers=ask)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
    for headers, status in (({}, 401), (key("first"), 200)):
        answer = client.get("/info", headers={"origin": ORIGIN, **headers})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "retry-after" in answer.headers["access-control-expose-headers"].lower()
    other = client.get("/info", headers={"origin": "https://evil.example", **key("first")})
    assert "access-control-allow-origin" not in other.headers


def test_no_origin_is_allowed_by_default(embedded_server: ServerProcess) -> None:
    answer = httpx.get(f"{embedded_server.url}/info", headers={"origin": ORIGIN})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_page_from_elsewhere_may_neither_send_nor_open_a_session(server: ServerProcess, client: httpx.Client) -> None:
    evil = "https://evil.example"
    form = {"text": (None, "Hello.")}  # what a browser sends without asking first
    for origin, status in ((evil, 403), ("null", 403), (ORIGIN, 200), (server.url, 200)):
        answer = client.post("/generate-upload", files=form, headers={"origin": origin, **key("first")})
        assert answer.status_code == status
    assert client.delete("/v1/audio/voices/nobody", headers={"origin": evil, **key("first")}).status_code == 403
    assert client.get("/voices", headers={"origin": evil, **key("first")}).status_code == 200
    for origin in (ORIGIN, server.url, None):
        with connected(server.url, additional_headers=key("first"), origin=origin):
            pass
    with pytest.raises(InvalidStatus) as error, connected(server.url, additional_headers=key("first"), origin=evil):
        pass
    assert error.value.response.status_code == 403
    assert json.loads(error.value.response.body)["error"]["code"] == "foreign_origin"


def test_behind_a_proxy_that_changes_host_the_browser_s_word_counts(embedded_server: ServerProcess) -> None:
    page = {"origin": "https://speech.example", "accept-language": "en"}
    for fetched, status in (("same-origin", 200), ("same-site", 403), ("cross-site", 403)):
        headers = {**page, "sec-fetch-site": fetched}
        assert httpx.post(f"{embedded_server.url}/plan", json={"text": "Hi."}, headers=headers).status_code == status
    refused = httpx.post(f"{embedded_server.url}/plan", json={"text": "Hi."}, headers=page)
    assert refused.json()["error"]["code"] == "foreign_origin"
    assert "--cors-origins" in refused.json()["message"]
    headers = {**page, "host": "speech.example"}
    assert httpx.post(f"{embedded_server.url}/plan", json={"text": "Hi."}, headers=headers).status_code == 200


def test_a_file_of_keys_that_cannot_be_used_ends_the_start(tmp_path: Path) -> None:
    server = ServerProcess(["--model-path", "embedded", "--api-key-file", str(tmp_path / "missing")])
    server.wait_for("--api-key-file: .*missing")
    assert server.process.wait(60) == 2
    server.stop()
    assert "Traceback" not in server.log


def test_with_reload_it_is_one_line_too(tmp_path: Path) -> None:
    server = ServerProcess(["--model-path", "embedded", "--reload", "--api-key-file", str(tmp_path / "missing")])
    server.wait_for("ERROR .*--api-key-file: .*missing")
    server.stop()  # the reloader waits for a change
    assert "Traceback" not in server.log
