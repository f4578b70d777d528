"""New requests for long, where tests/http/test_fuzz.py has the same few: SOAK_SECONDS for each kind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuzz import fuzz_document, fuzz_forms, fuzz_messages
from make_tiny_checkpoint import make_tiny_checkpoint
from metrics_of import idle_metrics
from server_process import ServerProcess
from soak.duration import SECONDS

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module", params=["embedded", "tiny"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """In a folder of its own: what is uploaded stays there."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    model = "embedded" if request.param == "embedded" else str(make_tiny_checkpoint(folder / "model"))
    with ServerProcess(["--model-path", model, "--max-new-tokens", "50"], cwd=folder) as process:
        process.wait_ready()
        yield process


@pytest.mark.parametrize("fuzz", [fuzz_document, fuzz_forms, fuzz_messages])
def test_fuzz(fuzz: Callable[..., object], server: ServerProcess) -> None:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        fuzz(server.url, 20, derandomize=False)
        idle_metrics(server.url)
    assert "Traceback" not in server.log
