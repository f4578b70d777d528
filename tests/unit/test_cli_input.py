"""The command line under odd circumstances: it ends with a sentence and a status, never with a stack trace."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from higgs_server import cli, main
from higgs_server.server import app
from higgs_server.synthesizer import Synthesizer
from higgs_server.types import AudioChunk, Script, SpeechRequest
from server_process import ROOT


class Ended:
    """A synthesizer during whose speech somebody presses Ctrl-C."""

    closed = False

    def plan(self, request: SpeechRequest) -> Script:
        self.text = request.text
        return Script((request.text,), request)

    def perform(self, script: Script) -> Iterator[AudioChunk]:
        raise KeyboardInterrupt

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def synthesizer(monkeypatch: pytest.MonkeyPatch) -> Ended:
    it = Ended()
    monkeypatch.setattr(Synthesizer, "load", lambda *_: it)
    return it


def say(monkeypatch: pytest.MonkeyPatch, folder: Path, data: bytes) -> int:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8", "surrogateescape"))
    return cli.main(["say", "-", "-o", str(folder / "a.wav"), "--model-path", "embedded"])


def test_ctrl_c_closes_the_model(synthesizer: Ended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert say(monkeypatch, tmp_path, b"Hello.") == 130
    assert synthesizer.closed


def test_a_byte_order_mark_is_not_spoken(synthesizer: Ended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, tmp_path, "\ufeff你好，世界".encode())
    assert synthesizer.text == "你好，世界"


def test_text_in_another_encoding_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert say(monkeypatch, tmp_path, "Hi 你好，世界".encode("gbk")) == 1
    assert "standard input is not UTF-8 (byte 4)" in capsys.readouterr().err


def test_without_standard_input_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert cli.main(["say", "-", "-o", str(tmp_path / "a.wav")]) == 1
    assert "standard input is closed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [["voices", "--voice-prompts-dir", "x" * 300], ["say", "Hello.", "-o", f"{'x' * 300}/a.wav"]],
)
def test_what_the_system_refuses_is_one_line(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("higgs-server: ")
    assert "File name too long" in line


def test_ctrl_c_before_the_server_listens_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "create_app", interrupted)
    assert main.main(["--model-path", "embedded", "--log-file", ""]) == 130


def run(*command: str, stdout: int, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "higgs_server.cli", *command],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **env},
        timeout=60,
    )


@pytest.mark.parametrize("command", [["voices"], ["batch", "--help"]])
def test_what_a_terminal_cannot_show_is_replaced(command: list[str]) -> None:
    result = run(*command, stdout=subprocess.PIPE, PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, "")
    assert "?" in result.stdout


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", [["voices"], ["--help"], ["serve", "--help"]])
def test_a_reader_that_has_gone_is_no_failure(command: list[str], unbuffered: str) -> None:
    theirs, ours = os.pipe()
    os.close(theirs)
    try:
        result = run(*command, stdout=ours, PYTHONUNBUFFERED=unbuffered)
    finally:
        os.close(ours)
    assert result.stderr == ""
    # argparse itself passes over a write that fails.
    assert result.returncode in ((141, 0) if unbuffered and "--help" in command else (141,))


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_one_line(unbuffered: str) -> None:
    with Path("/dev/full").open("wb") as full:
        result = run("voices", stdout=full.fileno(), PYTHONUNBUFFERED=unbuffered)
    assert (result.returncode, result.stderr) == (1, "higgs-server: [Errno 28] No space left on device\n")
