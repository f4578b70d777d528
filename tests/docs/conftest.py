"""One real server with the embedded voice for every example of the documentation."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server_process import ServerProcess


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """A ready server."""
    with ServerProcess(["--model-path", "embedded"]) as process:
        process.wait_ready()
        yield process
