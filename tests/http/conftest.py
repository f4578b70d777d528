"""Clients of the shared servers: the embedded voice, and a tiny Higgs checkpoint in either layout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from make_tiny_checkpoint import make_tiny_checkpoint
from server_process import KEY, FaultyServer, ServerProcess


@pytest.fixture(scope="session")
def native_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A ready server with a tiny checkpoint in transformers' layout."""
    yield from _serving(tmp_path_factory.mktemp("native"), "native")


@pytest.fixture(scope="session")
def original_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A ready server with the same checkpoint in the original layout."""
    yield from _serving(tmp_path_factory.mktemp("original"), "original")


def _serving(folder: Path, layout: Any) -> Iterator[ServerProcess]:
    make_tiny_checkpoint(folder, layout=layout, seed=4)
    # What is uploaded stays there.
    with ServerProcess(["--model-path", str(folder)], cwd=folder) as process:
        process.wait_ready()
        yield process


@pytest.fixture(scope="session")
def keyed_server() -> Iterator[ServerProcess]:
    """A server that asks for KEY."""
    with ServerProcess(["--model-path", "embedded", "--api-key", KEY]) as process:
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    """A client of the server that the test module means: the embedded voice's unless it says otherwise."""
    with httpx.Client(base_url=server.url, timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def faulty_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyServer]:
    """A ready server with a tiny checkpoint, two utterances at a time and three more in the queue."""
    folder = make_tiny_checkpoint(tmp_path_factory.mktemp("faulty"), seed=4)
    arguments = ["--model-path", str(folder), "--quantization", "none", "--max-running", "2", "--max-waiting", "3"]
    with FaultyServer(arguments) as process:
        process.wait_ready()
        yield process
