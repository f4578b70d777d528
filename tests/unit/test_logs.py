"""Log lines: readable by programs, one a record whatever is in it, and harmless where they cannot be written."""

from __future__ import annotations

import io
import json
import logging
import logging.handlers
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from higgs_server.logs import log_request, set_up_logging
from higgs_server.telemetry import RequestRecord, current_request
from higgs_server.types import NotFound

log = logging.getLogger("some.module")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(False)
    logging.basicConfig(handlers=handlers, level=level, force=True)
    logging.getLogger("uvicorn.access").disabled = False


@contextmanager
def no_file_grows_beyond(size: int) -> Iterator[None]:
    """What a full disk looks like to a file of this process: what fits is written, then comes an error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def entries(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("form", ["text", "json"])
def test_nothing_in_a_message_begins_a_line(capsys: pytest.CaptureFixture[str], form: str) -> None:
    set_up_logging("INFO", None, form)  # type: ignore[arg-type]
    log.info("name: %s", "x\n2026-01-01 INFO [-] forged: line\r\x1b[2Jy\u2028z")
    console = capsys.readouterr().err
    assert len(console.splitlines()) == 1
    assert "\x1b" not in console
    assert "forged" in console


def test_json_lines_say_who_when_and_what(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("INFO", None, "json")
    token = current_request.set(RequestRecord("r-1"))
    try:
        log.warning("careful: %s", "中文")
    finally:
        current_request.reset(token)
    try:
        raise ValueError("broken\nin two")
    except ValueError:
        log.exception("failed")
    log.debug("not at this level")
    first, second = entries(capsys.readouterr().err)
    assert first.items() >= {"level": "WARNING", "logger": "some.module", "request_id": "r-1"}.items()
    assert first["message"] == "careful: 中文"
    assert str(first["ts"]).endswith("+00:00")
    assert "ValueError: broken\nin two" in str(second["exception"])


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_request_is_one_line(capsys: pytest.CaptureFixture[str], form: str) -> None:
    set_up_logging("INFO", None, form)  # type: ignore[arg-type]
    record = RequestRecord("r-2", caller="10.0.0.1", observers=(log_request,))
    record.method, record.path, record.status, record.complete = "POST", "/generate", 200, True
    record.queued, record.first_audio, record.audio_seconds, record.generating = 0.25, 0.5, 4.0, 1.0
    record.finish_reason, record.bytes = "stop", 99
    record.end()
    if form == "text":
        console = capsys.readouterr().err
        assert "[r-2] higgs_server.access: POST /generate 200 " in console
        wanted = "ok caller=10.0.0.1 queued=0.25 first_audio=0.5 audio_seconds=4.0 rtf=0.25 finish_reason=stop bytes=99"
        assert console.endswith(wanted + "\n")
        return
    (line,) = entries(capsys.readouterr().err)
    expected = {"request_id": "r-2", "method": "POST", "path": "/generate", "status": 200, "outcome": "ok"}
    expected |= {"queued": 0.25, "first_audio": 0.5, "audio_seconds": 4.0, "rtf": 0.25, "finish_reason": "stop"}
    assert line.items() >= expected.items()


def test_how_a_request_ended_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("INFO", None, "json")
    gone, refused = RequestRecord("gone"), RequestRecord("refused")
    refused.status, refused.error, refused.complete = 404, NotFound("No voice is called 'x'."), True
    for record in (gone, refused):
        log_request(record)
    console = capsys.readouterr().err
    first, second = entries(console)
    assert (first["outcome"], first["status"]) == ("cancelled", None)
    assert (second["outcome"], second["status"]) == ("not_found", 404)
    assert "No voice" not in console


def test_a_full_disk_costs_lines_of_the_file_and_nothing_else(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "server.log"
    set_up_logging("INFO", file, "json")
    log.info("before")
    with no_file_grows_beyond(file.stat().st_size + 30):
        for n in range(200):
            log.info("lost %d %s", n, "x" * 100)
    log.info("after")
    whole = file.read_text()
    messages = [str(entry["message"]) for entry in entries(whole)]
    missing = 201  # two hundred, and the line that says so
    assert messages == ["before", "after", f"{file} can be written again; {missing} lines are missing there"]
    on_console = [str(entry["message"]) for entry in entries(capsys.readouterr().err)]
    assert len([message for message in on_console if message.startswith("lost ")]) == 200
    assert len([message for message in on_console if "cannot be written" in message]) == 1


def test_a_device_that_is_always_full(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("INFO", Path("/dev/full"))
    for n in range(3):
        log.info("line %d", n)
    console = capsys.readouterr().err
    assert console.count("INFO") == 3
    assert console.count("/dev/full cannot be written") == 1


@pytest.mark.parametrize("name", ["no/such/folder/server.log", "."])
def test_a_file_that_cannot_be_opened_is_said_and_the_console_stays(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    set_up_logging("INFO", tmp_path / name)
    log.info("still here")
    console = capsys.readouterr().err
    assert "no log file:" in console
    assert "still here" in console


def test_a_full_file_is_moved_aside(tmp_path: Path) -> None:
    file = tmp_path / "server.log"
    set_up_logging("INFO", file)
    _shrink(400)
    for n in range(40):
        log.info("line %02d", n)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["server.log", *(f"server.log.{n}" for n in range(1, 6))]
    assert all(path.stat().st_size <= 400 for path in tmp_path.iterdir())


def test_a_file_that_cannot_be_moved_aside_grows(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "server.log"
    set_up_logging("INFO", file)
    _shrink(400)
    for older in ("server.log.4", "server.log.5"):
        (tmp_path / older).mkdir()
    for n in range(40):
        log.info("line %02d", n)
    assert [n for n in range(40) if f"line {n:02d}" in file.read_text()] == list(range(40))
    assert capsys.readouterr().err.count("cannot be rotated") == 1


def _shrink(size: int) -> None:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.handlers.RotatingFileHandler):
            handler.maxBytes = size


def test_a_console_that_is_closed_harms_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file, console = tmp_path / "server.log", io.StringIO()
    monkeypatch.setattr(sys, "stderr", console)
    set_up_logging("INFO", file)
    console.close()
    log.info("to the file at least")
    assert "to the file at least" in file.read_text()


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_line_that_cannot_be_made_stops_nobody(capsys: pytest.CaptureFixture[str], form: str) -> None:
    set_up_logging("INFO", None, form)  # type: ignore[arg-type]
    log.warning("%d items", "many")
    log.warning("and on")
    console = capsys.readouterr().err
    assert "TypeError" in console
    assert "and on" in console


def test_asyncio_without_files_is_heard_once(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("INFO", None)
    for _ in range(1000):
        logging.getLogger("asyncio").error("socket.accept() out of system resource\nsocket: …")
    logging.getLogger("asyncio").error("something else")
    console = capsys.readouterr().err
    assert 1 <= console.count("out of system resource") < 100
    assert "something else" in console


def test_what_a_session_s_address_asks_is_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        set_up_logging("INFO", None)
    uvicorn = logging.getLogger("uvicorn.error")
    uvicorn.info('%s - "WebSocket %s" [accepted]', "10.0.0.1:1", "/v1/audio/speech/stream?key=s3cret")
    uvicorn.info("Started server process")
    console = capsys.readouterr().err
    assert "s3cret" not in console
    assert "Started server process" in console
