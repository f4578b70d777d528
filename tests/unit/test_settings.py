"""Flags, environment and file make one frozen Settings; the defaults are the documented ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from higgs_server.cli import main
from higgs_server.settings import BadSettings, Settings, shipped_examples


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cli(*arguments: str) -> Settings:
    return Settings.from_cli(arguments, program="api_server.py")


def test_defaults_are_the_documented_ones() -> None:
    settings = cli()
    assert (settings.host, settings.port) == ("0.0.0.0", 8000)
    assert settings.model_path == "bosonai/higgs-audio-v2-generation-3B-base"
    assert settings.audio_tokenizer_path == "bosonai/higgs-audio-v2-tokenizer"
    assert (settings.device, settings.max_new_tokens, settings.reload) == ("auto", 2048, False)
    assert settings.voice_prompts_dir.parts[-2:] == ("examples", "voice_prompts")
    assert settings.scene_prompts_dir.parts[-2:] == ("examples", "scene_prompts")
    assert settings.log_file == Path("api_server.log")
    assert settings.api_key is None


def test_a_flag_beats_the_environment_and_that_beats_the_file(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty_folder / "higgs-server.toml").write_text('port = 1\nhost = "1.1.1.1"\nmodel_path = "from-file"\n')
    monkeypatch.setenv("HIGGS_SERVER_PORT", "2")
    monkeypatch.setenv("HIGGS_SERVER_HOST", "2.2.2.2")
    settings = cli("--port", "3")
    assert (settings.port, settings.host, settings.model_path) == (3, "2.2.2.2", "from-file")


def test_what_export_writes_reads_back_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setattr(os, "environ", dict(os.environ))
    settings = cli("--api-key", "k", "--log-file", "", "--revision", "main", "--max-clip-seconds", "7.5", "--reload")
    settings.export()
    assert Settings() == settings


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--port", "70000"), "--port"),
        (("--port", "x"), "'x'"),
        (("--device", "tpu"), "'cuda'"),
        (("--max-new-tokens", "0"), "--max-new-tokens"),
        (("--max-clip-seconds", "inf"), "--max-clip-seconds"),
        (("--nothing",), "--nothing"),
    ],
)
def test_wrong_flags_end_with_a_sentence(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        cli(*arguments)
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert "api_server.py: error: " in said
    assert says in said


@pytest.mark.parametrize(
    ("file", "says"), [('port = "x"', "port"), ("prot = 9000", "prot"), ("port = = 1", "line 1"), (b"\xff", "utf-8")]
)
def test_a_wrong_file_is_named(empty_folder: Path, file: str | bytes, says: str) -> None:
    (empty_folder / "higgs-server.toml").write_bytes(file.encode() if isinstance(file, str) else file)
    with pytest.raises(BadSettings, match=r"higgs-server\.toml") as error:
        Settings()
    assert says in str(error.value)


@pytest.mark.parametrize("command", [["voices"], ["doctor"], ["serve"]])
def test_a_wrong_environment_is_told_by_every_command(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HIGGS_SERVER_PORT", "abc")
    try:
        status = main(command)
    except SystemExit as end:
        status = int(end.code or 0)
    assert status != 0
    assert "HIGGS_SERVER_PORT" in capsys.readouterr().err


def test_help_explains_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        cli("--help")
    assert error.value.code == 0
    shown = capsys.readouterr().out
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in shown
        assert field.description


def test_the_key_does_not_show() -> None:
    assert "s3cret" not in repr(cli("--api-key", "s3cret"))


def test_only_under_the_default_examples_lie_the_shipped_ones(empty_folder: Path) -> None:
    shipped = shipped_examples(Path("examples/voice_prompts"))
    assert shipped
    assert shipped.is_dir()
    assert shipped_examples(shipped) == shipped
    own = empty_folder / "examples" / "voice_prompts"
    own.mkdir(parents=True)
    assert shipped_examples(Path("examples/voice_prompts")) == shipped
    for other in (own, Path("voices"), Path("voice_prompts"), Path("examples"), Path("examples/nothing")):
        assert shipped_examples(other) is None


@pytest.mark.parametrize("address", ["ftp://me:s3cret@host/dir", "simplecache::ftp://me:s3cret@host/dir"])
def test_an_address_has_no_credentials_in_it(address: str) -> None:
    with pytest.raises(BadSettings, match="in the environment") as refused:
        Settings(voice_prompts_dir=address)
    assert "s3cret" not in f"{refused.value} {refused.value.zh}"
    with pytest.raises(BadSettings, match="not in the address") as refused:
        Settings(model_path=address.replace("ftp", "http"))
    assert "s3cret" not in f"{refused.value} {refused.value.zh}"
    assert Settings(voice_prompts_dir="memory://bucket/a@b").voice_prompts_dir == "memory://bucket/a@b"
