"""Requests made by machines, the same ones every time; `make soak` tries new ones for long (tests/soak/)."""

from __future__ import annotations

import httpx
import pytest

from fuzz import fuzz_document, fuzz_forms, fuzz_messages
from server_process import ServerProcess


@pytest.fixture(scope="module")
def server(native_server: ServerProcess) -> ServerProcess:
    """The one that can do everything: voices are cloned and scenes followed."""
    return native_server


def test_every_answer_is_one_that_the_document_describes(server: ServerProcess) -> None:
    seen = fuzz_document(server.url, 8, derandomize=True)
    assert {("POST /generate", 200), ("POST /generate", 422), ("POST /v1/audio/speech", 200)} <= seen
    assert "Traceback" not in server.log


def test_any_form_gets_an_answer(server: ServerProcess) -> None:
    assert {200, 400, 422} <= fuzz_forms(server.url, 150, derandomize=True)
    assert "Traceback" not in server.log


def test_any_session_ends_in_order(server: ServerProcess) -> None:
    assert {"audio.start", "audio.done", "session.done", "error"} <= fuzz_messages(server.url, 60, derandomize=True)
    assert "Traceback" not in server.log
    assert httpx.post(f"{server.url}/generate", json={"text": "Still here."}, timeout=60).status_code == 200
