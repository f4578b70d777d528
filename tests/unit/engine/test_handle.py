"""What a reader of an utterance waits for, and what wakes it."""

from __future__ import annotations

import threading
from unittest import mock

import pytest

from fake_model import FakeModel, prompt
from higgs_server.engine.guard import Frame
from higgs_server.engine.handle import Handle
from higgs_server.engine.sequence import CodeFormat, Frames, Sequence
from higgs_server.types import Cancelled, GenerationFailed, SamplingParams

PATIENCE = 60


@pytest.fixture
def handle() -> Handle:
    code_format = CodeFormat.of(FakeModel())
    sequence = Sequence(prompt(1, 2), SamplingParams(seed=0, max_new_tokens=40), code_format)
    return Handle(sequence, on_cancel=lambda _: None)


def frames(count: int, value: int = 3) -> list[Frame]:
    return [(value,) * 8] * count


def test_a_reader_gets_as_many_frames_as_it_wants_and_those_that_came_besides(handle: Handle) -> None:
    taken: list[Frames | None] = []
    reader = threading.Thread(target=lambda: taken.append(handle.take(3)), daemon=True)
    reader.start()
    for _ in range(3):
        handle.deliver(frames(1))
    reader.join(PATIENCE)
    (first,) = taken
    assert first is not None
    assert len(first) == 3
    handle.deliver(frames(4))
    handle.deliver(frames(1))
    more = handle.take(2)
    assert more is not None
    assert len(more) == 5


def test_nobody_is_woken_before_there_is_enough(handle: Handle) -> None:
    with mock.patch.object(handle._changed, "wait_for"):  # a reader that has begun to wait for four frames
        handle.take(4)
    with mock.patch.object(handle._changed, "notify_all") as woken:
        for enough in (False, False, False, True):
            handle.deliver(frames(1))
            assert woken.called is enough


def test_a_nudge_ends_one_wait(handle: Handle) -> None:
    handle.nudge()
    nothing = handle.take(5)
    assert nothing is not None
    assert nothing.shape == (0, 8)
    handle.deliver(frames(2))
    handle.nudge()
    some = handle.take(5)
    assert some is not None
    assert len(some) == 2
    handle.nudge()
    handle.deliver(frames(1))
    assert [len(part) for part in (next(handle),)] == [1], "iterating never gives nothing"


def test_the_end_gives_what_is_left_and_then_nothing(handle: Handle) -> None:
    handle.deliver(frames(2))
    handle.end()
    rest = handle.take(9)
    assert rest is not None
    assert len(rest) == 2
    assert handle.take(9) is None
    assert list(handle) == []


@pytest.mark.parametrize(
    "failure", [Cancelled(), GenerationFailed(RuntimeError("broken"))], ids=["cancelled", "failed"]
)
def test_a_failure_ends_the_wait_for_frames(handle: Handle, failure: Exception) -> None:
    handle.deliver(frames(2))
    handle.end(failure)
    with pytest.raises(type(failure)):
        handle.take(9)
