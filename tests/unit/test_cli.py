"""The command line without a model: whose settings it takes, and what it says of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from higgs_server import cli, doctor, synthesizer
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


def test_the_doctor_looks_for_weights_where_the_hub_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    file = tmp_path / "models--bosonai--higgs-audio-v2-generation-3B-base/snapshots/0123/model-1-of-3.safetensors"
    file.parent.mkdir(parents=True)  # all that a download leaves that broke off at once
    assert "are downloaded at first start" in doctor.report()
    file.touch()
    assert "its weights are downloaded" in doctor.report()
