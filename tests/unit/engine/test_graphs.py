"""What becomes of a step that is captured, that is asked for again, and that cannot be captured."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch

from higgs_server.engine import graphs
from higgs_server.engine.graphs import CapturedSteps


class Device:
    """Implements `graphs.Capture` and notes what it is asked for. `refuses`: what a capture raises."""

    def __init__(self, refuses: Exception | None = None) -> None:
        self.refuses = refuses
        self.log: list[str] = []
        self.running = ""

    def step(self, *shape: int) -> torch.Tensor:
        self.log.append(f"{self.running or 'plain'} {shape}")
        return torch.tensor(shape)

    def warm_up(self, work: Callable[[], torch.Tensor]) -> torch.Tensor:
        return self._run("warm-up", work)

    def capture(self, work: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        if self.refuses is not None:
            raise self.refuses
        return lambda: self._run("graph", work)

    def _run(self, how: str, work: Callable[[], torch.Tensor]) -> torch.Tensor:
        self.running = how
        try:
            return work()
        finally:
            self.running = ""


def test_a_shape_runs_once_and_is_a_graph_from_then_on() -> None:
    device = Device()
    step = CapturedSteps(device.step, device)
    shapes = [(1, 256), (2, 256), (1, 256), (1, 256), (2, 256)]
    assert [step(*shape).tolist() for shape in shapes] == [list(shape) for shape in shapes]
    how = ["warm-up", "warm-up", "graph", "graph", "graph"]
    assert device.log == [f"{word} {shape}" for word, shape in zip(how, shapes, strict=True)]


def test_the_least_recently_used_graph_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 2)
    device = Device()
    step = CapturedSteps(device.step, device)
    for batch in (1, 2, 1, 3, 1, 2):
        step(batch)
    assert [line.split()[0] for line in device.log] == ["warm-up", "warm-up", "graph", "warm-up", "graph", "warm-up"]


def test_where_nothing_can_be_captured_steps_run_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    device = Device()
    step = CapturedSteps(device.step, device)
    step(1)
    device.refuses = RuntimeError("operation not permitted when stream is capturing")
    with caplog.at_level(logging.WARNING):
        assert [step(batch).item() for batch in (2, 1, 2, 3)] == [2, 1, 2, 3]
    assert device.log == ["warm-up (1,)", "warm-up (2,)", "plain (1,)", "plain (2,)", "plain (3,)"]
    (record,) = caplog.records
    assert "not permitted" in (record.exc_text or str(record.exc_info))


def test_a_step_that_fails_at_its_first_run_is_no_failed_capture(caplog: pytest.LogCaptureFixture) -> None:
    device = Device()
    memory = [1]

    def step(*shape: int) -> torch.Tensor:
        if memory:
            raise torch.OutOfMemoryError(f"no memory for {memory.pop()} GB")
        return device.step(*shape)

    steps = CapturedSteps(step, device)
    with pytest.raises(torch.OutOfMemoryError):
        steps(4)
    assert [steps(4).item() for _ in range(2)] == [4, 4]
    assert device.log == ["warm-up (4,)", "graph (4,)"]
    assert not caplog.records
