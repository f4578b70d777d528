"""The engine as its clients see it: joins, leaves, cancellation, failures, limits, and nothing left behind."""

from __future__ import annotations

import gc
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from fake_model import FakeModel, prompt
from higgs_server.engine.engine import Engine
from higgs_server.engine.handle import Handle
from higgs_server.engine.interface import Run
from higgs_server.types import Cancelled, GenerationFailed, InvalidRequest, NotReady, SamplingParams, SpeechError

pytestmark = pytest.mark.usefixtures("one_thread")
PATIENCE = 120
"""Seconds after which something that never comes fails the test instead of hanging it."""


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def engine(model: FakeModel) -> Iterator[Engine]:
    with Engine(model, slots=8, max_len=400, prefill_budget=16) as engine:
        yield engine
        settle(engine)


def settle(engine: Engine) -> None:
    """Waits until the engine has nothing to do, then looks for leaks.

    An utterance of several rounds at the end of the queue makes sure that the statistics are not those of before.
    """
    frames_of(engine.submit(prompt(1), params(rows=12)))

    def idle() -> bool:
        return not (engine._submitted or engine._cancelled or engine._stats.running or engine._stats.waiting)

    with engine._wake:
        assert engine._wake.wait_for(idle, PATIENCE)
    assert not engine._handles
    assert not engine._tickets
    assert not engine._runner._keys
    assert engine._scheduler._slots == [None] * engine.slots
    assert not engine._runner._state.active.any()
    assert not engine._runner._state.position.any()


def params(seed: int = 1, rows: int = 40, **fields: object) -> SamplingParams:
    return SamplingParams(**{"seed": seed, "max_new_tokens": rows} | fields)  # type: ignore[arg-type]


def a_request(number: int, rows: int = 40) -> tuple[list[Run], SamplingParams]:
    """Requests that differ in everything."""
    dice = random.Random(number)
    tokens = [dice.randrange(100, 999) for _ in range(dice.randrange(1, 40))]
    sampling = params(
        seed=number,
        rows=dice.randrange(10, rows + 1),
        temperature=dice.choice([0.0, 0.7, 1.3]),
        top_k=dice.choice([None, 0, 1, 5, 50]),
        top_p=dice.choice([0.5, 0.95, 1.0]),
        ras_win_len=dice.choice([None, 0, 3, 7]),
    )
    return prompt(*tokens, audio=dice.choice([0, 9]), seed=number), sampling


def frames_of(handle: Handle) -> np.ndarray:
    parts = list(handle)
    assert all(part.shape[0] >= 1 for part in parts)
    return np.concatenate([np.empty((0, 8), dtype=np.int64), *parts])


def rows_of(handle: Handle) -> list[list[int]]:
    frames_of(handle)
    return handle.rows.tolist()


def alone(runs: list[Run], sampling: SamplingParams, model: FakeModel | None = None, **options: int) -> list[list[int]]:
    with Engine(model or FakeModel(), slots=1, max_len=400, prefill_budget=16) as engine:
        return rows_of(engine.submit(runs, sampling, **options))


# --- generation -----------------------------------------------------------------------------------------------------


def test_an_utterance_streams_its_frames_and_says_how_it_ended(engine: Engine) -> None:
    handle = engine.submit(prompt(1, 2, 3), params(rows=30))
    frames = frames_of(handle)
    assert handle.finish_reason == "length"
    assert handle.rows.shape == (30, 8)
    assert (handle.rows[0] == FakeModel.stream_bos_id).all()
    diagonal = np.array([[handle.rows[f + 1 + k, k] for k in range(8)] for f in range(22)])
    assert (frames == diagonal).all()


@pytest.mark.parametrize(("row", "codebook"), [(1, 0), (3, 2), (12, 5), (20, 0)])
def test_an_end_code_ends_the_utterance_eight_rows_later(row: int, codebook: int) -> None:
    model = FakeModel()
    model.ends[5] = (2 + row - 1, codebook)  # the prompt has two positions; row r - 1 is what row r follows
    with Engine(model, slots=2, max_len=400) as engine:
        handle = engine.submit(prompt(5, 6), params(rows=100))
        frames = frames_of(handle)
    assert handle.finish_reason == "stop"
    assert len(handle.rows) == row + 8 + 1
    assert (handle.rows[-1] == FakeModel.stream_eos_id).all()
    assert len(frames) == max(0, row - 1 - codebook)
    assert frames.max(initial=0) < FakeModel.stream_bos_id


def test_a_seed_gives_the_same_rows_alone_and_among_others_that_come_and_go(engine: Engine) -> None:
    expected = [alone(*a_request(n)) for n in range(12)]
    handles = [engine.submit(*a_request(n)) for n in range(12)]
    first_frames = [next(iter(handles[n]), None) for n in (0, 5)]
    leaving = [engine.submit(*a_request(100 + n)) for n in range(6)]
    for handle in leaving[::2]:
        handle.cancel()
    handles += [engine.submit(*a_request(n)) for n in range(12)]
    assert [rows_of(handle) for handle in handles] == expected * 2
    assert len(first_frames) == 2


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("padded", [False, True])
def test_reading_behind_the_device_and_padding_change_nothing(lookahead: int, padded: bool) -> None:
    model = FakeModel()
    with Engine(model, slots=5, max_len=400, prefill_budget=16) as engine:
        engine._runner.lookahead, engine._runner.padded = lookahead, padded
        handles = [engine.submit(*a_request(n)) for n in range(9)]
        assert [rows_of(handle) for handle in handles] == [alone(*a_request(n)) for n in range(9)]
        settle(engine)
    assert not padded or set(model.decoded) <= {1, 2, 4, 5}


def test_a_voices_prefix_is_prefilled_once_and_changes_nothing(engine: Engine, model: FakeModel) -> None:
    def request(number: int) -> tuple[list[Run], SamplingParams]:
        return prompt(*range(1, 30), 200 + number), params(seed=number)

    expected = [alone(*request(n), prefix_len=29) for n in range(3)]
    assert expected == [alone(*request(n), prefix_len=29) for n in range(3)]
    with engine._wake:  # taken in together
        handles = [engine.submit(*request(n), prefix_len=29) for n in range(3)]
    assert [rows_of(handle) for handle in handles] == expected
    assert [start for _, start, _ in model.prefilled] == [0, 16, 29, 29, 29]
    assert (engine.stats().prefix_hits, engine.stats().prefix_misses) == (2, 1)


def test_a_long_prompt_does_not_hold_up_a_running_stream() -> None:
    """While 300 positions are prefilled in pieces of 16, the stream that runs gets a row after every piece."""
    calls: list[str] = []

    class Watched(FakeModel):
        def prefill(self, *arguments: object) -> object:  # type: ignore[override]
            calls.append("prefill")
            return super().prefill(*arguments)  # type: ignore[arg-type]

        def decode(self, *arguments: object) -> object:  # type: ignore[override]
            calls.append("decode")
            return super().decode(*arguments)  # type: ignore[arg-type]

    with Engine(Watched(), slots=2, max_len=400, prefill_budget=16) as engine:
        with engine._wake:  # taken in together
            stream = engine.submit(prompt(1), params(rows=390))
            long = engine.submit(prompt(*range(300)), params(rows=10))
        frames_of(long)
        stream.cancel()
    pieces = [n for n, call in enumerate(calls) if call == "prefill"]
    assert len(pieces) == 1 + 19
    assert all(calls[n + 1] == "decode" for n in pieces)


# --- the guard ------------------------------------------------------------------------------------------------------


def test_endless_repetition_ends_as_guard_with_the_tail_cut(engine: Engine, model: FakeModel) -> None:
    model.constant.add(4)
    handle = engine.submit(prompt(4), params(rows=390, temperature=0.0, ras_win_len=0))
    frames = frames_of(handle)
    assert handle.finish_reason == "guard"
    assert len(frames) == 11
    assert len(handle.rows) == 59
    free = engine.submit(prompt(4), params(rows=390, temperature=0.0, ras_win_len=0), repeat_limit=None)
    assert len(frames_of(free)) == 382
    assert free.finish_reason == "length"


def test_the_frame_budget_ends_as_guard(engine: Engine) -> None:
    handle = engine.submit(prompt(4), params(rows=300), frame_budget=25)
    assert len(frames_of(handle)) == 25
    assert handle.finish_reason == "guard"


# --- limits ---------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_with_numbers(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match=r"300 positions.*101.*400.*at most 100") as refused:
        engine.submit(prompt(*range(300)), params(rows=101))
    assert refused.value.param == "max_new_tokens"
    assert "100" in refused.value.zh
    with pytest.raises(InvalidRequest, match=r"400 positions.*400") as refused:
        engine.submit(prompt(*range(400)), params(rows=1))
    assert refused.value.param == "text"
    whole = engine.submit(prompt(*range(300)), params(rows=100))
    assert len(frames_of(whole)) == 92
    assert whole.finish_reason == "length"


def test_a_single_row_needs_no_model(engine: Engine, model: FakeModel) -> None:
    handle = engine.submit(prompt(1), params(rows=1))
    assert rows_of(handle) == [[FakeModel.stream_bos_id] * 8]
    assert handle.finish_reason == "length"
    assert not model.prefilled


# --- cancellation and failure ---------------------------------------------------------------------------------------


def test_cancelling_frees_the_slot_for_those_who_wait() -> None:
    with Engine(FakeModel(), slots=1, max_len=4000) as engine:
        first = engine.submit(prompt(1), params(rows=3900, temperature=1.0))
        waiting = engine.submit(prompt(2), params(rows=20))
        never = engine.submit(prompt(3), params(rows=20))
        next(first)
        assert engine.stats().running == 1
        never.cancel()
        first.cancel()
        first.cancel()
        assert len(frames_of(waiting)) == 12
        for handle in (first, never):
            with pytest.raises(Cancelled):
                next(handle)
            assert handle.finish_reason is None
        settle(engine)
        waiting.cancel()
        assert waiting.finish_reason == "length"


def test_leaving_the_context_cancels() -> None:
    with Engine(FakeModel(), slots=1, max_len=4000) as engine:
        with engine.submit(prompt(1), params(rows=3900)) as handle:
            next(handle)
        with pytest.raises(Cancelled):
            next(handle)
        settle(engine)


def test_a_cancellation_wakes_who_waits_for_frames() -> None:
    reached = threading.Event()
    free = threading.Event()

    class Stuck(FakeModel):
        def prefill(self, *arguments: object) -> object:  # type: ignore[override]
            reached.set()
            assert free.wait(PATIENCE)
            return super().prefill(*arguments)  # type: ignore[arg-type]

    with Engine(Stuck(), slots=1, max_len=400) as engine, ThreadPoolExecutor(1) as pool:
        handle = engine.submit(prompt(1), params())
        waiting = pool.submit(lambda: list(handle))
        assert reached.wait(PATIENCE)
        handle.cancel()
        with pytest.raises(Cancelled):
            waiting.result(PATIENCE)
        free.set()


@contextmanager
def failing(cause: str) -> Iterator[pytest.ExceptionInfo[SpeechError]]:
    """For a block that ends with an exception of that text, of which only the kind is told."""
    with pytest.raises(SpeechError, match=r"\(RuntimeError\)") as failed:
        yield failed
    assert cause in str(failed.value.__cause__)
    assert cause not in f"{failed.value} {failed.value.zh}"


def test_a_prompt_that_fails_ends_alone(engine: Engine, model: FakeModel) -> None:
    model.fails.add(13)
    bad = engine.submit(prompt(13, 2), params())
    good = engine.submit(prompt(1, 2), params())
    with failing("no such prompt") as failed:
        frames_of(bad)
    assert failed.value.code == "generation_failed"
    assert bad.finish_reason is None
    assert rows_of(good) == alone(prompt(1, 2), params())


@pytest.mark.parametrize("lookahead", [0, 1])
def test_numbers_that_are_not_finite_end_alone_and_do_not_haunt_the_slot(lookahead: int) -> None:
    model = FakeModel()
    with Engine(model, slots=2, max_len=400) as engine:
        engine._runner.lookahead = lookahead
        model.breaks[13] = 30
        bad, good = engine.submit(prompt(13, 2), params(rows=300)), engine.submit(prompt(1, 2), params(rows=60))
        with pytest.raises(SpeechError, match="not finite"):
            frames_of(bad)
        after = engine.submit(prompt(3, 4), params(rows=60))
        assert rows_of(good) == alone(prompt(1, 2), params(rows=60))
        assert rows_of(after) == alone(prompt(3, 4), params(rows=60))


def test_a_step_that_fails_ends_those_in_it_and_the_engine_goes_on() -> None:
    model = FakeModel()
    with Engine(model, slots=2, max_len=400) as engine:
        model.fail_decode.add(13)
        with engine._wake:  # taken in together
            handles = [engine.submit(prompt(13, 2), params()), engine.submit(prompt(1, 2), params())]
            waiting = engine.submit(prompt(3, 4), params())
        for handle in handles:
            with failing("the device is unhappy"):
                frames_of(handle)
        assert rows_of(waiting) == alone(prompt(3, 4), params())
        settle(engine)


class Mortal(Engine):
    """Dies of an error that is no request's in its next `deaths` rounds with somebody in them."""

    deaths = 0
    stillborn = False

    def _begin(self) -> None:
        if self.stillborn:
            raise RuntimeError("no memory for a new cache")
        super()._begin()

    def _round(self) -> int:
        if self.deaths > 0 and self._handles:
            self.deaths -= 1
            raise RuntimeError("nobody's fault")
        return super()._round()


def test_an_engine_that_dies_says_so_and_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("higgs_server.engine.engine.FIRST_PAUSE", PATIENCE)
    with Mortal(FakeModel(), slots=1, max_len=400) as engine:
        running, waiting = (engine.submit(prompt(number), params(rows=300)) for number in (1, 2))
        next(running)
        engine.deaths = 1
        for handle in (running, waiting):
            with failing("nobody's fault") as failed:
                frames_of(handle)
            assert failed.value.code == "generation_failed"
        assert engine.trouble is not None
        assert engine.trouble.retry_after == PATIENCE
        with pytest.raises(NotReady, match=r"died \(RuntimeError\)"):
            engine.submit(prompt(1), params())
        assert engine.stats().running == 0
    monkeypatch.setattr("higgs_server.engine.engine.FIRST_PAUSE", 0.01)
    with Mortal(FakeModel(), slots=1, max_len=400) as engine:
        for deaths in range(10):  # a row in between, and they count from one again
            engine.deaths = 1
            with failing("nobody's fault"):
                frames_of(engine.submit(prompt(deaths), params()))
            wait_until(lambda: engine.trouble is None)
            assert rows_of(engine.submit(prompt(3, 4), params())) == alone(prompt(3, 4), params())
        settle(engine)


def test_an_engine_that_keeps_dying_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("higgs_server.engine.engine.FIRST_PAUSE", 0.001)
    with Mortal(FakeModel(), slots=1, max_len=400) as engine:
        engine.deaths, engine.stillborn = 1, True
        with failing("nobody's fault"):
            frames_of(engine.submit(prompt(1), params()))
        wait_until(lambda: engine.trouble is not None and engine.trouble.retry_after is None)
        with pytest.raises(NotReady, match="restart the server"):
            engine.submit(prompt(1), params())


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_device_that_is_lost_is_no_request_s_fault() -> None:
    class Lost(FakeModel):
        def prefill(self, *arguments: object) -> object:  # type: ignore[override]
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with Engine(Lost(), slots=1, max_len=400) as engine:
        with failing("illegal memory access"):
            frames_of(engine.submit(prompt(1), params()))
        wait_until(lambda: engine.trouble is not None)


def test_without_memory_fewer_run_at_once_and_not_all_fail_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    class Small(FakeModel):
        """Has memory for two rows a step."""

        def decode(self, kv_cache: Any, rows: Any, *arguments: Any) -> Any:
            if len(rows) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().decode(kv_cache, rows, *arguments)

    with Engine(Small(), slots=8, max_len=400, prefix_bytes=10**6) as engine:
        frames_of(engine.submit(prompt(1, 9), params(), prefix_len=2))
        assert engine.stats().prefixes == 1
        with engine._wake:  # taken in together
            handles = [engine.submit(prompt(number), params()) for number in range(20)]
        failed = 0
        for number, handle in enumerate(handles):
            try:
                assert rows_of(handle) == alone(prompt(number), params())
            except GenerationFailed:
                failed += 1
        assert failed <= 8 + 4
        assert engine._scheduler.limit == 2
        assert engine.stats().prefixes == 0
        monkeypatch.setattr("higgs_server.engine.engine.WIDEN_AFTER", 10)
        frames_of(engine.submit(prompt(1), params(rows=100)))
        assert engine._scheduler.limit == 8
        settle(engine)


def test_closing_ends_everything_and_refuses_more() -> None:
    before = threading.active_count()
    engine = Engine(FakeModel(), slots=1, max_len=4000)
    handles = [engine.submit(prompt(n), params(rows=3900)) for n in range(3)]
    next(handles[0])
    engine.close()
    engine.close()
    for handle in handles:
        with pytest.raises(Cancelled):
            frames_of(handle)
    with pytest.raises(NotReady):
        engine.submit(prompt(1), params())
    assert threading.active_count() == before


def test_a_closed_engine_frees_its_memory_whoever_holds_a_handle(model: FakeModel) -> None:
    with Engine(model, slots=2, max_len=400) as engine:
        handle = engine.submit(prompt(1, 2, 3), params(), prefix_len=2)
        frames_of(handle)
        memory = [weakref.ref(engine._runner._cache), weakref.ref(engine._runner._state.history)]
    gc.collect()
    assert [each() for each in memory] == [None, None]
    assert len(handle.rows) == 40
    assert engine.stats().running == 0


def test_an_idle_engine_does_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """No round is run between the end of one utterance and the next submission."""
    rounds: list[int] = []
    original = engine._round
    monkeypatch.setattr(engine, "_round", lambda: (rounds.append(1), original())[1])
    settle(engine)
    assert len(rounds) == 10  # rows 1 and 2 in the first, then one each
    settle(engine)
    assert len(rounds) == 20


# --- a long life ----------------------------------------------------------------------------------------------------


def test_a_thousand_random_requests_with_random_cancels_leave_nothing_behind() -> None:
    """From four threads, cancelled before, between and after their frames; what is not cancelled is unharmed."""
    model = FakeModel()
    threads = threading.active_count()
    with Engine(model, slots=8, max_len=200, prefill_budget=32, prefix_bytes=2000) as engine:
        engine._runner.lookahead = 1
        shape = engine._runner._cache.tensor.shape
        handles: weakref.WeakSet[Handle] = weakref.WeakSet()
        expected = {n: alone(*a_request(n, rows=16)) for n in range(10)}

        def client(first: int) -> int:
            dice = random.Random(first)
            finished = 0
            for _ in range(250):
                number = dice.randrange(10)
                handle = engine.submit(*a_request(number, rows=16), prefix_len=dice.choice([0, 1]))
                handles.add(handle)
                patience = dice.choice([0, 0, 1, 2, 3, 99])
                taken = 0
                if patience == 0 and dice.random() < 0.5:
                    handle.cancel()
                try:
                    while taken < patience:
                        next(handle)
                        taken += 1
                except StopIteration:
                    assert handle.rows.tolist() == expected[number]
                    finished += 1
                except Cancelled:
                    assert patience == 0
                handle.cancel()
            return finished

        with ThreadPoolExecutor(4) as pool:
            finished = sum(pool.map(client, range(4)))
        settle(engine)
        assert finished > 100
        assert engine._runner.prefixes.bytes <= 2000
        assert engine._runner._cache.tensor.shape == shape
        assert not engine._cancelled
        gc.collect()
        assert not handles
    assert threading.active_count() == threads
