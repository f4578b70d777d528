"""Clients of the shared servers: the embedded voice, and a tiny Higgs checkpoint in either layout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from make_tiny_checkpoint import make_tiny_checkpoint
from server_process import KEY, FaultyServer, ServerProcess


@pytest.fixture(scope="session")
def native_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A ready server with a tiny checkpoint in transformers' layout."""
    yield from _serving(make_tiny_checkpoint(tmp_path_factory.mktemp("native"), layout="native", seed=4))


@pytest.fixture(scope="session")
def quantised_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A ready server with a tiny checkpoint in the original layout, in 4 bits, on the CPU.

    What numbers so rounded draw depends on the processor, so it goes on until it is cut off: it is never silent.
    """
    folder = make_tiny_checkpoint(tmp_path_factory.mktemp("quantised"), layout="original", seed=4, endless=True)
    yield from _serving(folder, "--device", "cpu", "--quantization", "int4")


def _serving(folder: Path, *flags: str) -> Iterator[ServerProcess]:
    # What is uploaded stays there, and what is made of the checkpoint.
    arguments, env = ["--model-path", str(folder), *flags], {"HF_HOME": str(folder / "cache")}
    with ServerProcess(arguments, env, cwd=folder) as process:
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
