"""A real server process for tests: started on a free port, watched through its log, ended with a signal."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 120.0
KEY = "s3cret"
"""What `keyed_server` asks for."""


class ServerProcess:
    """`python api_server.py …` until the block ends. `lines` holds what it has logged so far."""

    script = ROOT / "api_server.py"

    def __init__(self, arguments: Sequence[str] = (), env: Mapping[str, str] | None = None, cwd: Path = ROOT) -> None:
        self.arguments = list(arguments)
        self.lines: list[str] = []
        self._news: queue.Queue[str | None] = queue.Queue()
        command = [sys.executable, str(self.script), "--host", "127.0.0.1", "--port", "0", "--log-file", ""]
        self.process = subprocess.Popen(
            [*command, *arguments],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = ""

    def __enter__(self) -> ServerProcess:
        line = self.wait_for(r"Uvicorn running on (http://\S+)")
        match = re.search(r"http://\S+", line)
        assert match
        self.url = match.group().rstrip("/")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()

    def wait_for(self, pattern: str, seconds: float = START_SECONDS) -> str:
        """The first log line that matches, past ones included."""
        for line in list(self.lines):
            if re.search(pattern, line):
                return line
        while True:
            try:
                line = self._news.get(timeout=seconds)
            except queue.Empty:
                raise AssertionError(f"{pattern!r} not logged within {seconds} s:\n{self.log}") from None
            if line is None:
                raise AssertionError(f"the server ended without logging {pattern!r}:\n{self.log}")
            if re.search(pattern, line):
                return line

    def wait_for_news(self, seconds: float = START_SECONDS) -> None:
        """Until something more is logged."""
        assert self._news.get(timeout=seconds) is not None, f"the server ended:\n{self.log}"

    def wait_ready(self, seconds: float = START_SECONDS) -> None:
        """Until the model can speak."""
        self.wait_for(r"higgs_server\.server\.model: ready:", seconds)

    @property
    def log(self) -> str:
        """All that was logged."""
        return "".join(self.lines)

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> int:
        """Ends the process (its whole session, reloaders' children too) and returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            status = self.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            status = self.process.wait()
        self._reader.join(10)
        if self.process.stderr:
            self.process.stderr.close()
        return status

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.lines.append(line)
            self._news.put(line)
        self._news.put(None)


class FaultyServer(ServerProcess):
    """A server whose model can be held and broken: see faulty_server.py."""

    script = ROOT / "tests/faulty_server.py"

    def control(self, verb: str, name: str, **options: Any) -> None:
        """`hold`, `step`, `free` or `break` what `name` stands for."""
        httpx.post(f"{self.url}/{verb}/{name}", params=options, timeout=60).raise_for_status()

    def inside(self) -> dict[str, Any]:
        """What runs, and how often what has been called."""
        found: dict[str, Any] = httpx.get(f"{self.url}/inside", timeout=60).raise_for_status().json()
        return found

    def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Waits until what is inside is as it should be."""
        end = time.monotonic() + 60
        while not condition(found := self.inside()):
            assert time.monotonic() < end, f"{found}\n{self.log}"
        return found

    def until_ready(self) -> None:
        """The model can speak (again)."""
        self.until(lambda _: httpx.get(f"{self.url}/ready", timeout=60).status_code == 200)

    def idle(self) -> None:
        """Nothing runs, waits or speaks any more."""
        self.until(lambda found: not any(found[name] for name in ("running", "waiting", "slots", "queued", "speaking")))
