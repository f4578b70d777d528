"""test_client.py against a live server, and against servers that are broken: it has to fail there."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from docs.page import ROOT
from server_process import ServerProcess


def _run(url: str, output: Path, test: str = "all") -> subprocess.CompletedProcess[str]:
    """In Python alone (-I -S: no installed packages)."""
    command = [sys.executable, "-I", "-S", str(ROOT / "test_client.py"), "--test", test]
    return subprocess.run(
        [*command, "--url", url, "--output-dir", str(output)], capture_output=True, text=True, timeout=600
    )


def test_all_of_it_against_the_embedded_voice(server: ServerProcess, tmp_path: Path) -> None:
    result = _run(server.url, tmp_path / "heard")
    assert result.returncode == 0, result.stdout + result.stderr
    assert [line for line in result.stdout.splitlines() if line.startswith("passed ")] == [
        "passed basic",
        "passed voice-clone",
        "passed streaming",
        "passed upload",
    ]
    assert "so an uploaded voice has to be refused:\n  refused as it should be: 422 unsupported" in result.stdout
    saved = {file.name for file in (tmp_path / "heard").iterdir()}
    assert {"basic_en.wav", "basic_zh.wav", "voice_belinda.wav", "voice_dialogue.wav", "streaming.wav"} <= saved


@contextmanager
def _broken_server(ready: int, status: str) -> Iterator[str]:
    class Broken(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(ready if self.path == "/ready" else 200)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(200)

        def _answer(self, code: int) -> None:
            body = {"status": status, "model": "none", "message": "no luck", "supported_features": [], "success": True}
            body |= {"model_name": "none", "device": "cpu", "generated_text": "", "seed": 0, "finish_reason": "stop"}
            data = json.dumps({**body, "audio_base64": "", "duration": 0}).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_model_that_could_not_be_loaded_fails_at_once(tmp_path: Path) -> None:
    with _broken_server(503, "failed") as url:
        result = _run(url, tmp_path)
    assert result.returncode == 1
    assert "FAILED: no model: no luck" in result.stdout


@pytest.mark.parametrize("test", ["basic", "voice-clone", "streaming", "upload"])
def test_answers_without_sound_fail(test: str, tmp_path: Path) -> None:
    with _broken_server(200, "ready") as url:
        result = _run(url, tmp_path, test)
    assert result.returncode == 1
    assert f"failed: {test}" in result.stdout


def test_an_address_without_a_scheme_is_told(tmp_path: Path) -> None:
    done = _run("localhost:8000", tmp_path)
    assert done.returncode == 2
    assert "http://" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
