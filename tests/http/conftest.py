"""A client of the shared server."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from server_process import ServerProcess


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    """A client of that server."""
    with httpx.Client(base_url=server.url, timeout=120) as client:
        yield client
