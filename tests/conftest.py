"""What all tests share: servers with the embedded voice, and threads that do not fight."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

# Tiny networks on two threads spend their time waiting for each other. Read when torch is imported, also by servers.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from server_process import FaultyServer, ServerProcess


@pytest.fixture(scope="session")
def embedded_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A ready server with the embedded voice, in a folder of its own: what is uploaded stays there.

    HIGGS_TEST_SERVER is the address of one that runs elsewhere, for tests that need no more of it.
    """
    if url := os.environ.get("HIGGS_TEST_SERVER"):
        yield SimpleNamespace(url=url)  # type: ignore[misc]
        return
    with ServerProcess(["--model-path", "embedded"], cwd=tmp_path_factory.mktemp("embedded")) as process:
        process.wait_ready()
        yield process


@pytest.fixture(scope="session")
def faulty_voice(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyServer]:
    """A ready server with the embedded voice that can be held and broken."""
    with FaultyServer(["--model-path", "embedded"], cwd=tmp_path_factory.mktemp("faulty-voice")) as process:
        process.wait_ready()
        yield process


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One torch thread: handing tensors this small to several costs far more than it saves."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def server(embedded_server: ServerProcess) -> ServerProcess:
    """The server that a test module means by default."""
    return embedded_server
