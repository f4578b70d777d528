"""The HTTP tests of one server, asked of replicas on Ray Serve: whoever asks cannot tell them apart."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ray_cluster import RayCluster

ROOT = Path(__file__).resolve().parents[2]
SUITE = [
    ROOT / "tests/http" / name
    for name in ("test_native.py", "test_openai.py", "test_conversation.py", "test_bad_input.py")
]
OF_ONE_PROCESS = [
    "leaves_stops",
    "logged",
    "the_log_has",
    "cut_off",
    "ending_in_the_middle",
    "refused_before_it_is_read",
]
"""Words in the names of tests that watch one server's log, or its socket: Ray Serve's proxy reads a body to its end."""


@pytest.mark.parametrize("word", OF_ONE_PROCESS)
def test_what_is_left_out_exists(word: str) -> None:
    assert any(re.search(rf"def test_\w*{word}", file.read_text()) for file in SUITE)


@pytest.mark.ray
@pytest.mark.soak
def test_replicas_answer_as_one_server_does() -> None:
    chosen = " and ".join(f"not {word}" for word in OF_ONE_PROCESS)
    with RayCluster(2, "model_path=embedded") as cluster:
        result = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-k", chosen, *SUITE],
            cwd=ROOT,
            env={**os.environ, "HIGGS_TEST_SERVER": cluster.url},
            capture_output=True,
            text=True,
        )
    assert result.returncode == 0, result.stdout[-6_000:]
