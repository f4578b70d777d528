"""Importing the package costs nothing: no model library, no web framework."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "fastapi", "starlette", "onnxruntime", "av", "uvicorn"}


def imported_by(statement: str) -> set[str]:
    command = [sys.executable, "-X", "importtime", "-c", statement]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    return {line.rpartition("|")[2].strip().split(".")[0] for line in lines}


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import higgs_server", HEAVY),
        ("import higgs_server.cli", HEAVY),
        ("from higgs_server import Synthesizer, SpeechRequest", HEAVY),
        ("import higgs_server.server.app", HEAVY - {"fastapi", "starlette"}),
    ],
)
def test_importing_is_light(statement: str, forbidden: set[str]) -> None:
    found = imported_by(statement)
    assert "higgs_server" in found
    assert not found & forbidden


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    import higgs_server

    with pytest.raises(AttributeError, match="nothing_here"):
        _ = higgs_server.nothing_here
