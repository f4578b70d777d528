"""One real server a model, shared by all tests over HTTP."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from server_process import ServerProcess


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """A ready server with the embedded voice."""
    with ServerProcess(["--model-path", "embedded"]) as process:
        process.wait_ready()
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    """A client of that server."""
    with httpx.Client(base_url=server.url, timeout=120) as client:
        yield client
