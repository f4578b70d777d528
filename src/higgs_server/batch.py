"""Many texts from a file: each line of `in.jsonl` becomes `DIR/<id>.wav` and a line of `DIR/manifest.jsonl`.

Whatever ends the process, starting it again goes on where it stopped. One process writes into DIR; what speaks the
lines, here or on a cluster, only hands outcomes back. Knows no HTTP and no Ray.
"""

from __future__ import annotations

import fcntl
import json
import logging
import sys
import threading
import time
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError
from tqdm import tqdm

from higgs_server.audio import wav
from higgs_server.library.names import check_name
from higgs_server.synthesizer import Synthesizer, join
from higgs_server.types import (
    Cancellation,
    Cancelled,
    FinishReason,
    GenerationFailed,
    InvalidRequest,
    LoadError,
    NotReady,
    Script,
    Speech,
    SpeechError,
    SpeechRequest,
    invalid_request,
)

log = logging.getLogger(__name__)

MANIFEST = "manifest.jsonl"
MAX_LINE_BYTES = 4 * 2**20
ATTEMPTS = 20
"""Times that one line is tried while the model says that it will be back: an engine that died begins anew."""
_PARTIAL = ".partial"
"""What is being written; it gets its name when it is whole."""
_BAR = "{desc}{percentage:3.0f}%|{bar}| {n}/{total} lines, {remaining} left{postfix}"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the input that can be spoken; `number` counts from 1."""

    number: int
    id: str
    request: SpeechRequest


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the manifest. `id` is None where the line has none of its own; `error` is None where it is spoken."""

    id: str | None
    line: int
    seed: int | None = None
    duration: float | None = None
    finish_reason: FinishReason | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a line: a whole WAV, or none and an error in the record."""

    record: Record
    sound: bytes | None = None


Speak = Callable[[Iterator[Line]], Iterator[Outcome]]
"""Speaks lines and yields the outcome of each, in any order. Raises SpeechError where no line can be spoken."""


@dataclass(slots=True)
class Summary:
    """A run of a batch, in numbers."""

    spoken: int = 0
    failed: int = 0
    cut_short: int = 0
    """Of those spoken: ended by max_new_tokens or the guard."""
    finished_before: int = 0
    audio_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Audio-seconds a second."""
        return self.audio_seconds / self.seconds if self.seconds else 0.0


def run(source: Path, folder: Path, speak: Speak) -> Summary:
    """Speaks every line of `source` that `folder` does not have yet. Raises SpeechError where it cannot go on."""
    summary = Summary()
    started = time.monotonic()
    try:
        with source.open("rb") as stream, Results(folder) as results:
            summary.finished_before = len(results.finished)
            total = _count_lines(stream) if stream.seekable() else None
            form = None if total is None else _BAR
            with tqdm(total=total, unit=" lines", disable=None, leave=False, bar_format=form) as bar:

                def settle(outcome: Outcome) -> None:
                    results.keep(outcome)
                    record = outcome.record
                    if record.error is not None:
                        summary.failed += 1
                        tqdm.write(f"line {record.line}: {record.error}", file=sys.stderr)
                    else:
                        summary.spoken += 1
                        summary.cut_short += record.finish_reason != "stop"
                        summary.audio_seconds += record.duration or 0.0
                    summary.seconds = time.monotonic() - started
                    bar.set_postfix_str(f"{summary.rate:.1f} audio-seconds/s", refresh=False)
                    bar.update()

                def to_speak() -> Iterator[Line]:
                    for item in read_lines(stream):
                        if isinstance(item, Outcome):
                            settle(item)
                        elif item.id in results.finished:
                            bar.update()
                        else:
                            yield item

                lines = to_speak()
                if (first := next(lines, None)) is not None:
                    for outcome in speak(chain([first], lines)):
                        settle(outcome)
    except OSError as error:
        # Every other file is the model's business, and its errors are SpeechErrors by now.
        raise SpeechError(
            f"{error.filename or folder}: {error.strerror}. What is finished is kept; run the same command again.",
            f"{error.filename or folder}：{error.strerror}。已完成的部分已保留，请重新运行同一命令。",
        ) from None
    summary.seconds = time.monotonic() - started
    return summary


# --- the input ------------------------------------------------------------------------------------------------------


def read_lines(stream: BinaryIO) -> Iterator[Line | Outcome]:
    """The lines as they are read; an Outcome for one that cannot be spoken. Blank lines are none."""
    taken: dict[str, int] = {}
    number = 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        raw = raw.removeprefix(BOM_UTF8)  # some editors and shells begin a file with it
        if not raw.strip():
            continue
        name: str | None = None
        try:
            if len(raw) > MAX_LINE_BYTES:
                _skip_line(stream, raw)
                raise InvalidRequest(f"a line has at most {MAX_LINE_BYTES} bytes")
            name = _id_of(raw)
            if name in taken:
                other, name = name, None
                raise InvalidRequest(f"id: {other!r} is the id of line {taken[other]} already", param="id")
            taken[name] = number
            yield Line(number, name, _request(raw))
        except SpeechError as error:
            yield Outcome(Record(name, number, error=str(error)))


def _id_of(raw: bytes) -> str:
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError):
        raise InvalidRequest("not valid JSON") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("not a JSON object")
    name = fields.get("id")
    if isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
    if not isinstance(name, str):
        raise InvalidRequest("id: a name is due, it becomes the file's", param="id")
    return check_name(name, "id")


def _request(raw: bytes) -> SpeechRequest:
    try:
        return SpeechRequest.model_validate_json(raw)
    except ValidationError as error:
        raise invalid_request(error.errors(include_input=False)[0]) from None


def _skip_line(stream: BinaryIO, raw: bytes) -> None:
    while raw and not raw.endswith(b"\n"):
        raw = stream.readline(MAX_LINE_BYTES)


def _count_lines(stream: BinaryIO) -> int:
    count, last = 0, b"\n"
    while block := stream.read(2**20):
        count += block.count(b"\n")
        last = block[-1:]
    stream.seek(0)
    return count + (last != b"\n")


# --- the voice ------------------------------------------------------------------------------------------------------


def speak_line(synthesizer: Synthesizer, line: Line, cancellation: Cancellation) -> Outcome:
    """One line, as `/generate` answers it. Raises NotReady or LoadError where no other line would fare better."""
    try:
        speech = _speech(synthesizer, synthesizer.plan(line.request), cancellation)
    except (NotReady, LoadError, Cancelled):
        raise
    except SpeechError as error:
        return Outcome(Record(line.id, line.number, error=str(error)))
    except Exception as error:
        log.exception("line %d failed", line.number)
        return Outcome(Record(line.id, line.number, error=f"failed here ({type(error).__name__}: {error})"))
    record = Record(line.id, line.number, speech.seed, round(speech.duration, 3), speech.finish_reason)
    return Outcome(record, wav.encode(speech.samples))


def _speech(synthesizer: Synthesizer, script: Script, cancellation: Cancellation) -> Speech:
    """Waits for a model that will be back, and gives one that failed a second chance: it may have died of another."""
    over = threading.Event()
    cancellation.on_cancel(over.set)
    attempts = failures = 0
    while True:
        attempts += 1
        one = Cancellation()
        cancellation.on_cancel(one.cancel)
        try:
            return join(script, list(synthesizer.perform(script, one)))
        except NotReady as error:
            if error.retry_after is None or attempts == ATTEMPTS:
                raise
            if over.wait(error.retry_after):
                raise Cancelled from None
        except SpeechError as error:
            failures += 1
            if error.code != GenerationFailed.code or failures == 2:
                raise


def speak_here(synthesizer: Synthesizer, lines: Iterator[Line]) -> Iterator[Outcome]:
    """All of this process's model: as many lines at once as it works on, and as many again being prepared."""
    at_once = 2 * synthesizer.backend.info.max_running
    running: dict[Future[Outcome], Cancellation] = {}

    def done() -> Iterator[Outcome]:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            del running[future]
            yield future.result()

    with ThreadPoolExecutor(at_once, thread_name_prefix="batch") as pool:
        try:
            for line in lines:
                cancellation = Cancellation()
                running[pool.submit(speak_line, synthesizer, line, cancellation)] = cancellation
                if len(running) == at_once:
                    yield from done()
            while running:
                yield from done()
        finally:
            for cancellation in running.values():
                cancellation.cancel()


# --- the output -----------------------------------------------------------------------------------------------------


class Results:
    """DIR. At any moment each WAV in it is whole, and each id of the manifest that has no error has its WAV."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder, or mends it after an abrupt end. Raises SpeechError where another process writes there."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._partial = folder / _PARTIAL
        self._lock = (folder / ".lock").open("wb")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise SpeechError(
                f"Another batch is writing into {folder}: wait for it, or take another --out.",
                f"另一个批处理正在写入 {folder}：请等待其结束，或更换 --out。",
            ) from None
        self.finished = self._mend()
        self._manifest = (folder / MANIFEST).open("ab", buffering=0)

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self._manifest.close()
        self._lock.close()

    def keep(self, outcome: Outcome) -> None:
        """First the WAV, under its name once it is whole, then the manifest."""
        record = outcome.record
        if outcome.sound is not None:
            self._partial.write_bytes(outcome.sound)
            self._partial.replace(self._wav(str(record.id)))
        self._manifest.write(json.dumps(asdict(record), ensure_ascii=False).encode() + b"\n")

    def _mend(self) -> set[str]:
        """The ids that are finished. The manifest keeps those alone: what failed or was cut off is tried again."""
        manifest = self._folder / MANIFEST
        finished: set[str] = set()
        with self._partial.open("wb") as kept:
            if manifest.exists():
                with manifest.open("rb") as stream:
                    for raw in stream:
                        name = _finished_id(raw)
                        if name is not None and name not in finished and self._wav(name).is_file():
                            finished.add(name)
                            kept.write(raw)
        self._partial.replace(manifest)
        return finished

    def _wav(self, name: str) -> Path:
        return self._folder / f"{name}.wav"


def _finished_id(raw: bytes) -> str | None:
    """Of a line of the manifest; None where it says of a failure, or is torn."""
    try:
        record = json.loads(raw)
        name = record["id"]
        if record["error"] is not None or not raw.endswith(b"\n"):
            return None
        return check_name(name, "id")
    except (ValueError, TypeError, KeyError, AttributeError, SpeechError):
        return None
