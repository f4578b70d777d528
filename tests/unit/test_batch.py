"""Batches without a process around them: lines, an abrupt end, and the engine kept full."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from fake_model import FakeModel, prompt
from higgs_server.batch import (
    ATTEMPTS,
    MANIFEST,
    Line,
    Outcome,
    Record,
    Results,
    read_lines,
    run,
    speak_here,
    speak_line,
)
from higgs_server.engine.engine import Engine
from higgs_server.library.profiles import ProfileLibrary
from higgs_server.library.scenes import SceneLibrary
from higgs_server.library.voices import VoiceLibrary
from higgs_server.synthesizer import Synthesizer
from higgs_server.types import (
    AudioChunk,
    Cancellation,
    Cancelled,
    Feature,
    GenerationFailed,
    ModelInfo,
    NotReady,
    Script,
    SpeechError,
    SpeechRequest,
)

SLOTS = 16


class SlowStep(FakeModel):
    """A step takes the same simulated time whatever the batch, as on a device that waits for its memory."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def decode(self, kv_cache: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor, max_len: int) -> torch.Tensor:
        time.sleep(0.01)
        self.batches.append(len(rows))
        return super().decode(kv_cache, rows, positions, max_len)


class Frames:
    """A backend with an engine and silence for sound. What begins with "break" breaks."""

    info = ModelInfo("frames", "cpu", frozenset({Feature.STREAMING}), 24, max_running=SLOTS)

    def __init__(self) -> None:
        self.model = SlowStep()
        self.engine = Engine(self.model, slots=SLOTS, max_len=256)

    def check(self, script: Script) -> None:
        pass

    def speak(self, script: Script, cancellation: Cancellation) -> Iterator[AudioChunk]:
        if script.text.startswith("break"):
            raise ZeroDivisionError
        with self.engine.submit(prompt(len(script.text)), script.sampling) as handle:
            cancellation.on_cancel(handle.cancel)
            for frames in handle:
                yield AudioChunk(np.zeros(960 * len(frames), np.float32))
            yield AudioChunk(np.zeros(0, np.float32), finish_reason=handle.finish_reason)

    def close(self) -> None:
        self.engine.close()


@pytest.fixture
def synthesizer(tmp_path: Path) -> Iterator[Synthesizer]:
    it = Synthesizer(Frames(), VoiceLibrary(tmp_path), SceneLibrary(tmp_path), ProfileLibrary(tmp_path))
    yield it
    it.close()


def lines(texts: Sequence[str]) -> Iterator[Line]:
    for number, text in enumerate(texts, 1):
        yield Line(number, f"n{number}", SpeechRequest(text=text, scene_prompt=None, seed=number))


def test_many_lines_share_the_steps_of_the_engine(synthesizer: Synthesizer) -> None:
    outcomes = list(speak_here(synthesizer, lines([f"Line {n}." for n in range(64)])))
    assert sorted(outcome.record.line for outcome in outcomes) == list(range(1, 65))
    backend = synthesizer.backend
    assert isinstance(backend, Frames)
    rows, steps = sum(backend.model.batches), len(backend.model.batches)
    assert rows >= 64 * 20
    assert rows >= 3 * steps  # one by one each row is a step of its own


def test_a_line_that_breaks_something_stops_no_other(synthesizer: Synthesizer) -> None:
    outcomes = {o.record.line: o for o in speak_here(synthesizer, lines(["One.", "break it", "Three."]))}
    assert "ZeroDivisionError" in str(outcomes[2].record.error)
    assert outcomes[1].sound
    assert outcomes[3].sound


def test_an_engine_that_has_stopped_ends_the_batch(synthesizer: Synthesizer, tmp_path: Path) -> None:
    synthesizer.close()
    source = tmp_path / "in.jsonl"
    source.write_text('{"id": "a", "text": "Hello.", "scene_prompt": null}\n')
    with pytest.raises(NotReady):
        run(source, tmp_path / "out", lambda lines: speak_here(synthesizer, lines))
    assert (tmp_path / "out" / MANIFEST).read_bytes() == b""


class Faults(Frames):
    """Raises what it is given, one for each call, before it speaks."""

    def __init__(self, *faults: SpeechError) -> None:
        super().__init__()
        self.faults = list(faults)

    def speak(self, script: Script, cancellation: Cancellation) -> Iterator[AudioChunk]:
        if self.faults:
            raise self.faults.pop(0)
        return super().speak(script, cancellation)


def spoken(synthesizer: Synthesizer, *faults: SpeechError) -> Iterator[Outcome]:
    synthesizer.backend.close()
    synthesizer.backend = Faults(*faults)
    return speak_here(synthesizer, lines(["One."]))


def test_a_model_that_will_be_back_is_waited_for(synthesizer: Synthesizer) -> None:
    died = GenerationFailed(RuntimeError("CUDA error"))
    (outcome,) = spoken(synthesizer, died, *(NotReady("soon", retry_after=0) for _ in range(ATTEMPTS - 2)))
    assert outcome.record.error is None
    assert outcome.sound


def test_a_model_that_never_comes_back_ends_the_batch(synthesizer: Synthesizer) -> None:
    with pytest.raises(NotReady):
        list(spoken(synthesizer, *(NotReady("soon", retry_after=0) for _ in range(ATTEMPTS))))
    backend = synthesizer.backend
    assert isinstance(backend, Faults)
    assert backend.faults == []


def test_a_line_that_fails_twice_has_failed(synthesizer: Synthesizer) -> None:
    (outcome,) = spoken(synthesizer, *(GenerationFailed(RuntimeError("once more")) for _ in range(2)))
    assert "Generation failed" in str(outcome.record.error)


def test_leaving_ends_the_wait_for_a_model(synthesizer: Synthesizer) -> None:
    line = next(lines(["One."]))
    synthesizer.backend.close()
    synthesizer.backend = Faults(NotReady("soon", retry_after=3600))
    cancellation = Cancellation()
    cancellation.cancel()
    with pytest.raises(Cancelled):
        speak_line(synthesizer, line, cancellation)


def test_leaving_early_stops_what_is_being_spoken(synthesizer: Synthesizer) -> None:
    outcomes = speak_here(synthesizer, lines([f"Line {n}." for n in range(200)]))
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    backend = synthesizer.backend
    assert isinstance(backend, Frames)
    assert backend.engine.stats().rows < 200 * 20


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    theirs, ours = os.pipe()
    os.write(ours, b'{"id": "a", "text": "Hello."}\n{"id": "b", "text": "Bye."}\n')
    os.close(ours)
    try:
        summary = run(
            Path(f"/dev/fd/{theirs}"),
            tmp_path,
            lambda lines: (Outcome(Record(line.id, line.number, 1, 0.1, "stop"), b"RIFF") for line in lines),
        )
    finally:
        os.close(theirs)
    assert summary.spoken == 2


GOOD = b'{"id": "good", "text": "Hello."}'


@pytest.mark.parametrize(
    ("bad", "name", "says"),
    [
        (b"not json", None, "JSON"),
        (b"[]", None, "object"),
        (b'{"text": "Hello."}', None, "id"),
        (b'{"id": true, "text": "Hello."}', None, "id"),
        (b'{"id": "../up", "text": "Hello."}', None, "id"),
        (b'{"id": "\\ud800", "text": "Hello."}', None, "id"),
        (b'{"id": "silent"}', "silent", "text"),
        (b'{"id": "hot", "text": "Hello.", "temperature": 9}', "hot", "temperature"),
        (b'{"id": "\xff", "text": "Hello."}', None, "JSON"),
        (b"[" * 100_000, None, "JSON"),
        (b'{"id": "long", "text": "' + b"x" * 5_000_000 + b'"}', None, "bytes"),
        (GOOD, None, "line 1"),
    ],
    ids=range(12),
)
def test_a_bad_line_is_told_and_the_next_one_counts(bad: bytes, name: str | None, says: str) -> None:
    first, wrong, last = read_lines(io.BytesIO(GOOD + b"\n" + bad + b'\n\n{"id": 7, "text": "Bye."}'))
    assert isinstance(first, Line)
    assert isinstance(wrong, Outcome)
    assert (wrong.record.id, wrong.record.line) == (name, 2)
    assert says in str(wrong.record.error)
    assert isinstance(last, Line)
    assert (last.id, last.number, last.request.text) == ("7", 4, "Bye.")


def test_a_file_may_begin_with_a_byte_order_mark() -> None:
    lines = list(read_lines(io.BytesIO(b"\xef\xbb\xbf" + GOOD + b'\r\n{"id": "next", "text": "Bye."}\r\n')))
    assert [line.id for line in lines if isinstance(line, Line)] == ["good", "next"]


def test_the_folder_is_mended_after_an_abrupt_end(tmp_path: Path) -> None:
    with Results(tmp_path) as results:
        for name in ("kept", "without-sound"):
            results.keep(Outcome(Record(name, 1, 1, 0.1, "stop"), b"RIFF"))
        results.keep(Outcome(Record("failed", 2, error="no")))
        with pytest.raises(SpeechError, match="Another batch"):
            Results(tmp_path)
    (tmp_path / "without-sound.wav").unlink()
    (tmp_path / "without-line.wav").write_bytes(b"RIFF")
    with (tmp_path / MANIFEST).open("ab") as manifest:
        manifest.write(b'garbage\n{"id": "../../etc/passwd", "error": null}\n{"id": "without-line", "err')
    with Results(tmp_path) as results:
        assert results.finished == {"kept"}
        results.keep(Outcome(Record("without-line", 3, 1, 0.1, "stop"), b"RIFF2"))
    assert [json.loads(line)["id"] for line in (tmp_path / MANIFEST).read_text().splitlines()] == [
        "kept",
        "without-line",
    ]
    assert (tmp_path / "without-line.wav").read_bytes() == b"RIFF2"
