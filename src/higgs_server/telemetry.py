"""Logging and the request's clock. Knows no endpoint and no model; users' texts never pass through above DEBUG."""

from __future__ import annotations

import logging
import logging.handlers
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from higgs_server.types import SAMPLING_RATE, AudioChunk, FinishReason, Progress

_BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}"
_FORMAT = "%(asctime)s %(levelname)-7s [%(request_id)s] %(name)s: %(message)s"


class _RequestIdFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = current_request.get().id
        return True


def set_up_logging(level: str, log_file: Path | None) -> None:
    """Logs to the console and, where given, to a file rotated at 10 MB (five kept). Replaces earlier handlers."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    problem: OSError | None = None
    if log_file is not None:
        try:
            handlers.append(
                logging.handlers.RotatingFileHandler(log_file, maxBytes=10_000_000, backupCount=5, encoding="utf-8")
            )
        except OSError as error:
            problem = error
    for handler in handlers:
        handler.setFormatter(logging.Formatter(_FORMAT))
        handler.addFilter(_RequestIdFilter())
    logging.basicConfig(level=level, handlers=handlers, force=True)
    for noisy in ("httpx", "httpcore", "urllib3", "filelock", "libav"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Our own line a request says more than uvicorn's.
    logging.getLogger("uvicorn.access").disabled = True
    if problem is not None:
        logging.getLogger(__name__).warning("no log file: %s cannot be written (%s)", log_file, problem.strerror)


class Clock:
    """Seconds since the request arrived."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def seconds(self) -> float:
        """Elapsed so far."""
        return time.perf_counter() - self._start


@dataclass(slots=True)
class RequestRecord:
    """One request from its arrival on: whose it is and how it goes. Whoever learns something writes it down here."""

    id: str = "-"
    caller: str = "-"
    """Who shares one turn in the queue: the name of an API key, else the client's address."""
    clock: Clock = field(default_factory=Clock)
    deadline: float | None = None
    """Seconds after arrival from which on nobody waits for the answer; None for no end."""
    queued: float | None = None
    """Seconds it waited for its turn, None where it never had one."""
    first_audio: float | None = None
    """Seconds from arrival to the first sound."""
    audio_seconds: float = 0.0
    finish_reason: FinishReason | None = None

    def hear(self, piece: AudioChunk) -> None:
        """Notes a piece of sound that was made for this request."""
        if self.first_audio is None and len(piece.samples):
            self.first_audio = self.clock.seconds()
        self.audio_seconds += len(piece.samples) / SAMPLING_RATE
        self.finish_reason = piece.finish_reason or self.finish_reason


current_request: ContextVar[RequestRecord] = ContextVar("current_request", default=RequestRecord())  # noqa: B039
"""The request being served in this context; one called `-` outside of any."""


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """A bar on the console where a person looks at it, and a log line a stage everywhere."""
    logger = logging.getLogger(__name__)
    stage_now = ""
    # disable=None: no bar where stderr is not a terminal.
    with tqdm(total=100, desc=title, unit="%", disable=None, leave=False, bar_format=_BAR) as bar:

        def report(stage: str, fraction: float) -> None:
            nonlocal stage_now
            if stage != stage_now:
                stage_now = stage
                logger.info("%s: %s", title, stage)
                bar.set_description(f"{title}: {stage}")
            bar.update(max(0.0, 100 * fraction - bar.n))

        yield report
