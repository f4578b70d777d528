"""The command line without a model: whose settings it takes, and what it says of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from higgs_server import cli, synthesizer
from higgs_server.types import LoadError, LoadOptions, Progress


@pytest.mark.parametrize("command", ["say", "batch"])
def test_every_command_takes_the_model_from_the_settings(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[LoadOptions] = []

    def load(options: LoadOptions, progress: Progress) -> None:
        loaded.append(options)
        raise LoadError("no model here")

    monkeypatch.setattr(synthesizer, "load_backend", load)
    monkeypatch.setenv("HIGGS_SERVER_MODEL_PATH", "http://elsewhere:9")
    monkeypatch.setenv("HIGGS_SERVER_REMOTE_API_KEY", "secret")
    monkeypatch.setenv("HIGGS_SERVER_QUANTIZATION", "int4")
    lines = tmp_path / "in.jsonl"
    lines.write_text('{"id": "a", "text": "Hello."}')
    how = {"say": ["Hello.", "-o", str(tmp_path / "a.wav")], "batch": [str(lines), "--out", str(tmp_path / "out")]}
    assert cli.main([command, *how[command], "--device", "cpu"]) == 1
    (options,) = loaded
    assert (options.model_path, options.device) == ("http://elsewhere:9", "cpu")
    assert (options.remote_api_key, options.quantization) == ("secret", "int4")


def test_the_doctor_finds_the_folders_that_ship_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["doctor"]) == 0
    assert "MISSING" not in capsys.readouterr().out
    monkeypatch.setenv("HIGGS_SERVER_VOICE_PROMPTS_DIR", "nowhere")
    assert cli.main(["doctor"]) == 0
    assert "nowhere (MISSING)" in capsys.readouterr().out
