"""Starting, loading, failing to load, keys, reloading: the life of the process around the API."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx
import pytest

from higgs_server.types import DEFAULT_SCENE
from server_process import KEY, ROOT, ServerProcess


def test_the_port_answers_while_the_model_loads() -> None:
    with ServerProcess(["--model-path", "embedded"]) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        # The port opens before the model's first byte is read, so the first answers come from a loading server.
        assert client.get("/health").status_code == 200
        early = client.get("/ready")
        info = client.get("/info").json()
        answer = client.post("/generate", json={"text": "Hello."})
        if early.status_code == 503:
            assert early.json()["status"] == "loading"
            assert int(early.headers["retry-after"]) > 0
        if answer.status_code == 503:
            assert info["is_loaded"] is False
            assert info["supported_features"] == []
            assert int(answer.headers["retry-after"]) > 0
            assert answer.json()["error"]["code"] == "not_ready"
        assert early.status_code == 503
        server.wait_ready()
        assert client.get("/ready").json()["status"] == "ready"
        assert client.get("/info").json()["is_loaded"] is True
        assert client.post("/generate", json={"text": "Hello."}).status_code == 200


@pytest.mark.parametrize(
    ("model_path", "says"),
    [
        ("/no/such/folder", "/no/such/folder"),
        ("bosonai/higgs-audio-v2-generation-3B-base", "hub"),
    ],
)
def test_a_model_that_cannot_be_had_leaves_the_server_up(model_path: str, says: str) -> None:
    # A hub that refuses connections: what a machine without network sees.
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": "/nonexistent-hub-cache"}
    with ServerProcess(["--model-path", model_path], env) as server, httpx.Client(base_url=server.url) as client:
        logged = server.wait_for(r"server\.model: no model:")
        ready = client.get("/ready", headers={"accept-language": "en"})
        answer = client.post("/generate", json={"text": "Hello."}, headers={"accept-language": "en"})
        assert ready.status_code == answer.status_code == 503
        assert ready.json()["status"] == "failed"
        for told in (logged, ready.json()["message"], answer.json()["message"]):
            assert says in told
            assert "--model-path embedded" in told
        assert client.get("/health").status_code == 200
        assert client.get("/info").json()["is_loaded"] is False
        assert client.get("/voices").json()["count"] == 8


def test_with_a_key_every_endpoint_but_health_asks_for_it(keyed_server: ServerProcess) -> None:
    with httpx.Client(base_url=keyed_server.url) as client:
        assert client.get("/health").status_code == 200
        for path in ("/", "/info", "/voices", "/ready", "/docs", "/openapi.json"):
            for headers in (
                {},
                {"x-api-key": "wrong"},
                {"authorization": f"Bearer {KEY[:-1]}"},
                {"authorization": f"Basic {KEY}"},
            ):
                answer = client.get(path, headers=headers)
                assert answer.status_code == 401
                assert answer.json()["error"]["code"] == "unauthorized"
                assert answer.headers["www-authenticate"] == "Bearer"
        assert client.post("/generate", json={"text": "x"}).status_code == 401
        assert client.get("/info", headers={"x-api-key": KEY}).status_code == 200
        assert client.get("/info", headers={"authorization": f"bearer {KEY}"}).status_code == 200
    assert KEY not in keyed_server.log


def test_flags_survive_reload(tmp_path: Path) -> None:
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    (scenes / "attic.txt").write_text("Recorded in an attic.")
    arguments = ["--model-path", "embedded", "--max-new-tokens", "99", "--scene-prompts-dir", str(scenes), "--reload"]
    with ServerProcess([*arguments, "--port", "0"]) as server:
        server.wait_ready()
        with httpx.Client(base_url=server.url) as client:
            info = client.get("/info").json()
            assert (info["model_name"], info["max_new_tokens"]) == ("embedded", 99)
            assert [scene["name"] for scene in client.get("/scenes").json()["scenes"]] == ["attic", DEFAULT_SCENE]
            assert client.post("/generate", json={"text": "Hello."}).status_code == 200


def test_the_log_file_has_what_the_console_has(tmp_path: Path) -> None:
    file = tmp_path / "server.log"
    with ServerProcess(["--model-path", "embedded", "--log-file", str(file)]) as server:
        httpx.get(f"{server.url}/health", headers={"x-request-id": "file-1"})
        server.wait_for(r"\[file-1\]")
    assert "[file-1] higgs_server.access: GET /health 200" in file.read_text()


def test_sigterm_ends_it_cleanly() -> None:
    with ServerProcess(["--model-path", "embedded"]) as server:
        server.wait_ready()
        assert server.stop(signal.SIGTERM) == 0
    assert "Traceback" not in server.log


def test_settings_come_from_the_environment_and_the_file_too(tmp_path: Path) -> None:
    (tmp_path / "higgs-server.toml").write_text('model_path = "embedded"\nmax_new_tokens = 321\n')
    env = {"HIGGS_SERVER_MAX_NEW_TOKENS": "123", "PYTHONPATH": str(ROOT / "src")}
    with ServerProcess([], env, cwd=tmp_path) as server:
        info = httpx.get(f"{server.url}/info").json()
        assert (info["model_name"], info["max_new_tokens"]) == ("embedded", 123)
        # The shipped examples are found from any working directory.
        assert httpx.get(f"{server.url}/voices").json()["count"] == 8


def test_sigint_ends_it_cleanly_too() -> None:
    with ServerProcess(["--model-path", "embedded"]) as server:
        server.wait_ready()
        assert server.stop(signal.SIGINT) == 0
    assert "Traceback" not in server.log


def test_a_port_in_use_is_said_and_fails() -> None:
    with ServerProcess(["--model-path", "embedded"]) as server:
        port = server.url.rpartition(":")[2]
        second = ServerProcess(["--model-path", "embedded", "--port", port])
        second.wait_for("address already in use")
        assert second.process.wait(60) != 0
        second.stop()
