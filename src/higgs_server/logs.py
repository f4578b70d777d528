"""Logging: text or JSON lines to the console and a file, and one line a request.

Users' texts never pass through above DEBUG. A log that cannot be written harms nobody but its readers.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from higgs_server.telemetry import RequestRecord, current_request

LogFormat = Literal["text", "json"]

log = logging.getLogger(__name__)
access = logging.getLogger("higgs_server.access")

_TEXT = "%(asctime)s %(levelname)-7s [%(request_id)s] %(name)s: %(message)s"
_ESCAPED = {code: f"\\u{code:04x}" for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}
"""What some reader takes for the end of a line, or a terminal for a command, as JSON writes it."""
_LONGEST_LINE = 2**16
_NOISY = ("httpx", "httpcore", "urllib3", "filelock", "libav", "opentelemetry")


def set_up_logging(level: str, log_file: Path | None, log_format: LogFormat = "text") -> None:
    """Logs to the console and, where given, to a file rotated at 10 MB (five kept). Replaces earlier handlers.

    What the console shows is in the file already, or lost there.
    """
    handlers: list[logging.Handler] = [_Console(sys.stderr)]
    problem: OSError | None = None
    if log_file is not None:
        try:
            handlers.insert(0, _LogFile(log_file, maxBytes=10_000_000, backupCount=5, encoding="utf-8"))
        except OSError as error:
            problem = error
    for handler in handlers:
        handler.setFormatter(_JsonLine() if log_format == "json" else _TextLine(_TEXT))
        handler.addFilter(_with_request_id)
        handler.addFilter(_OnceASecond())
    logging.basicConfig(level=level, handlers=handlers, force=True)
    logging.captureWarnings(True)
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Our own line a request says more than uvicorn's.
    logging.getLogger("uvicorn.access").disabled = True
    logging.getLogger("uvicorn.error").addFilter(_no_session)
    if problem is not None:
        log.warning("no log file: %s cannot be written (%s)", log_file, problem.strerror)


def log_request(record: RequestRecord) -> None:
    """The line a request leaves behind: who asked for what, how long it took, and how it ended."""
    fields = {
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "total": round(record.total, 3),
        "outcome": record.outcome,
        "caller": record.caller,
        "queued": _rounded(record.queued),
        "first_audio": _rounded(record.first_audio),
        "audio_seconds": _rounded(record.audio_seconds or None),
        "rtf": _rounded(record.real_time_factor),
        "finish_reason": record.finish_reason,
        "bytes": record.bytes,
    }
    head = f"{record.method} {record.path} {record.status or 'closed'} {record.total:.3f}s {record.outcome}"
    rest = [f"{name}={value}" for name, value in list(fields.items())[5:] if value is not None]
    access.info("%s", " ".join([head, *rest]), extra={"fields": fields, "request_id": record.id})


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _with_request_id(record: logging.LogRecord) -> bool:
    record.__dict__.setdefault("request_id", current_request.get().id)
    return True


def _no_session(record: logging.LogRecord) -> bool:
    """uvicorn's line about a WebSocket shows its query, where people put what is secret."""
    return not str(record.msg).startswith('%s - "WebSocket ')


class _OnceASecond(logging.Filter):
    """Without files to open, asyncio says so thousands of times for one connection that it cannot accept."""

    _said = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if not str(record.msg).startswith("socket.accept() out of system resource"):
            return True
        again = record.created < self._said + 1
        self._said = self._said if again else record.created
        return not again


class _TextLine(logging.Formatter):
    """One line for people: nothing in a message begins another, or moves the cursor of who reads it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return super().formatMessage(record).translate(_ESCAPED)


class _JsonLine(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "request_id": getattr(record, "request_id", "-"),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        return json.dumps(line, ensure_ascii=False, default=str).translate(_ESCAPED)


class _Console(logging.StreamHandler):  # type: ignore[type-arg]
    """Standard error; where that is full or nobody reads it any more there is nowhere left to complain."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError | ValueError):  # ValueError: the stream is closed
            super().handleError(record)


class _LogFile(logging.handlers.RotatingFileHandler):
    """A log file that says once when it cannot be written (disk full, folder gone), and once when it can again."""

    _lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        lost = self._lost
        super().emit(record)
        if lost and self._lost == lost:
            self._lost = 0
            log.warning("%s can be written again; %d lines are missing there", self.baseFilename, lost)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self._cut_off()
        self._lost += 1
        if self._lost == 1:
            log.error("%s cannot be written (%s): what is logged goes to the console only", self.baseFilename, error)

    def _cut_off(self) -> None:
        """Drops what is left of a line that was not written whole; the next line opens the file anew."""
        stream, self.stream = self.stream, None
        with suppress(OSError):
            if stream is not None:
                stream.close()
        with suppress(OSError), open(self.baseFilename, "rb+") as file:
            start = max(0, file.seek(0, os.SEEK_END) - _LONGEST_LINE)
            file.seek(start)
            file.truncate(start + file.read(_LONGEST_LINE).rfind(b"\n") + 1)

    def doRollover(self) -> None:
        try:
            super().doRollover()
        except OSError as error:
            if self.stream is None:
                self.stream = self._open()
            self.maxBytes = 0
            log.warning("%s cannot be rotated (%s): it grows from here on", self.baseFilename, error)
