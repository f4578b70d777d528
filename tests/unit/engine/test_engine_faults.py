"""Whoever leaves or fails ends alone, whatever network runs: cancellation, faults, memory, death and restart."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import torch

from engine_clients import PATIENCE, alone, failing, frames_of, params, rows_of, settle, wait_until
from fake_model import prompt
from higgs_server.engine.engine import MAX_DEATHS, Engine
from higgs_server.engine.handle import Handle
from higgs_server.engine.interface import FrameModel
from higgs_server.types import Cancelled, GenerationFailed, NotReady, SpeechError
from scripted_model import ScriptedModel

pytestmark = pytest.mark.usefixtures("one_thread")


# --- cancellation ---------------------------------------------------------------------------------------------------


def test_cancelling_frees_the_slot_for_those_who_wait(model: ScriptedModel) -> None:
    with Engine(model, slots=1, max_len=4000) as engine:
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


def test_leaving_the_context_cancels(model: ScriptedModel) -> None:
    with Engine(model, slots=1, max_len=4000) as engine:
        with engine.submit(prompt(1), params(rows=3900)) as handle:
            next(handle)
        with pytest.raises(Cancelled):
            next(handle)
        settle(engine)


def test_a_cancellation_wakes_who_waits_for_frames(model: ScriptedModel) -> None:
    reached = threading.Event()
    free = threading.Event()
    model.on_call = lambda name: (reached.set(), free.wait(PATIENCE))
    with Engine(model, slots=1, max_len=400) as engine, ThreadPoolExecutor(1) as pool:
        handle = engine.submit(prompt(1), params())
        waiting = pool.submit(lambda: list(handle))
        assert reached.wait(PATIENCE)
        handle.cancel()
        with pytest.raises(Cancelled):
            waiting.result(PATIENCE)
        free.set()


def test_a_cancellation_at_any_moment_harms_nobody(network: FrameModel, model: ScriptedModel) -> None:
    """Amid each of the model's calls in turn, from the first until it comes too late, while a neighbour of the same
    voice runs and another waits for the slot. Who leaves draws no more rows than the round it was in does."""
    requests = [(prompt(*range(1, 21), number, audio=9), params(number, rows=12)) for number in (30, 31, 32)]
    expected = [alone(network, *request, prefix_len=20) for request in requests]
    handles: list[Handle] = []
    moment = calls = drawn = 0

    def cancel_at_the_moment(name: str) -> None:
        nonlocal calls, drawn
        calls += 1
        if calls == moment:
            drawn = len(handles[0].rows)
            handles[0].cancel()

    with Engine(model, slots=2, max_len=400, prefill_budget=16) as engine:
        while not moment or handles[0].finish_reason is None:
            engine._runner.prefixes.clear()
            model.on_call, calls, moment = cancel_at_the_moment, 0, moment + 1
            with engine._wake:  # taken in together
                handles = [engine.submit(*request, prefix_len=20) for request in requests]
            assert [rows_of(handle) for handle in handles[1:]] == expected[1:]
            with suppress(Cancelled):
                assert rows_of(handles[0]) == expected[0]
            model.on_call = lambda name: None
            settle(engine)
            assert handles[0].finish_reason is not None or len(handles[0].rows) <= drawn + 2
    assert moment > 12


# --- faults ---------------------------------------------------------------------------------------------------------


def test_a_prompt_that_fails_ends_alone(network: FrameModel, engine: Engine, model: ScriptedModel) -> None:
    expected = alone(network, prompt(1, 2), params())
    model.fails.add(13)
    bad = engine.submit(prompt(13, 2), params())
    good = engine.submit(prompt(1, 2), params())
    with failing("no such prompt") as failed:
        frames_of(bad)
    assert failed.value.code == "generation_failed"
    assert bad.finish_reason is None
    assert rows_of(good) == expected


@pytest.mark.parametrize("lookahead", [0, 1])
def test_numbers_that_are_not_finite_end_alone_and_do_not_haunt_the_slot(
    network: FrameModel, model: ScriptedModel, lookahead: int
) -> None:
    expected = [alone(network, prompt(*tokens), params(rows=60)) for tokens in ((1, 2), (3, 4))]
    with Engine(model, slots=2, max_len=400) as engine:
        engine._runner.lookahead = lookahead
        model.breaks[13] = 30
        bad, good = engine.submit(prompt(13, 2), params(rows=300)), engine.submit(prompt(1, 2), params(rows=60))
        with pytest.raises(SpeechError, match="not finite"):
            frames_of(bad)
        after = engine.submit(prompt(3, 4), params(rows=60))
        assert [rows_of(good), rows_of(after)] == expected


def test_a_step_that_fails_ends_those_in_it_and_the_engine_goes_on(network: FrameModel, model: ScriptedModel) -> None:
    expected = alone(network, prompt(3, 4), params())
    with Engine(model, slots=2, max_len=400) as engine:
        model.fail_decode.add(13)
        with engine._wake:  # taken in together
            handles = [engine.submit(prompt(13, 2), params()), engine.submit(prompt(1, 2), params())]
            waiting = engine.submit(prompt(3, 4), params())
        for handle in handles:
            with failing("the device is unhappy"):
                frames_of(handle)
        assert rows_of(waiting) == expected
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


def test_an_engine_that_dies_says_so_and_begins_anew(
    network: FrameModel, model: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("higgs_server.engine.engine.FIRST_PAUSE", PATIENCE)
    with Mortal(model, slots=1, max_len=400) as engine:
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
    expected = alone(network, prompt(3, 4), params())
    with Mortal(model, slots=1, max_len=400) as engine:
        for deaths in range(MAX_DEATHS + 1):  # a row in between, and they count from one again
            engine.deaths = 1
            with failing("nobody's fault"):
                frames_of(engine.submit(prompt(deaths), params()))
            wait_until(lambda: engine.trouble is None)
            assert rows_of(engine.submit(prompt(3, 4), params())) == expected
        settle(engine)


def test_an_engine_that_keeps_dying_gives_up(model: ScriptedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("higgs_server.engine.engine.FIRST_PAUSE", 0.001)
    with Mortal(model, slots=1, max_len=400) as engine:
        engine.deaths, engine.stillborn = 1, True
        with failing("nobody's fault"):
            frames_of(engine.submit(prompt(1), params()))
        wait_until(lambda: engine.trouble is not None and engine.trouble.retry_after is None)
        with pytest.raises(NotReady, match="restart the server"):
            engine.submit(prompt(1), params())


def test_a_device_that_is_lost_is_no_request_s_fault(model: ScriptedModel) -> None:
    def lost(name: str) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    model.on_call = lost
    with Engine(model, slots=1, max_len=400) as engine:
        with failing("illegal memory access"):
            frames_of(engine.submit(prompt(1), params()))
        wait_until(lambda: engine.trouble is not None)


def test_without_memory_fewer_run_at_once_and_not_all_fail_for_ever(
    network: FrameModel, model: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def memory_for_two_rows(name: str) -> None:
        if name == "decode" and model.decoded[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    expected = [alone(network, prompt(number), params()) for number in range(20)]
    model.on_call = memory_for_two_rows
    with Engine(model, slots=8, max_len=400, prefix_bytes=10**6) as engine:
        frames_of(engine.submit(prompt(1, 9), params(), prefix_len=2))
        assert engine.stats().prefixes == 1
        with engine._wake:  # taken in together
            handles = [engine.submit(prompt(number), params()) for number in range(20)]
        failed = 0
        for handle, rows in zip(handles, expected, strict=True):
            try:
                assert rows_of(handle) == rows
            except GenerationFailed:
                failed += 1
        assert failed <= 8 + 4
        assert engine._scheduler.limit == 2
        assert engine.stats().prefixes == 0
        monkeypatch.setattr("higgs_server.engine.engine.WIDEN_AFTER", 10)
        frames_of(engine.submit(prompt(1), params(rows=100)))
        assert engine._scheduler.limit == 8
        settle(engine)


# --- the end --------------------------------------------------------------------------------------------------------


def test_closing_ends_everything_and_refuses_more(model: ScriptedModel) -> None:
    engine = Engine(model, slots=1, max_len=4000)
    handles = [engine.submit(prompt(n), params(rows=3900)) for n in range(3)]
    next(handles[0])
    engine.close()
    engine.close()
    for handle in handles:
        with pytest.raises(Cancelled):
            frames_of(handle)
    with pytest.raises(NotReady):
        engine.submit(prompt(1), params())
    assert "engine" not in {thread.name for thread in threading.enumerate()}


def test_a_closed_engine_frees_its_memory_whoever_holds_a_handle(model: ScriptedModel) -> None:
    with Engine(model, slots=2, max_len=400) as engine:
        handle = engine.submit(prompt(1, 2, 3), params(), prefix_len=2)
        frames_of(handle)
        memory = [weakref.ref(engine._runner._cache.tensor), weakref.ref(engine._runner._state.history)]
    gc.collect()
    assert [each() for each in memory] == [None, None]
    assert len(handle.rows) == 40
    assert engine.stats().running == 0


def test_an_idle_engine_does_nothing(network: FrameModel, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """No round is run between the end of one utterance and the next submission."""
    rounds: list[int] = []
    original = engine._round
    monkeypatch.setattr(engine, "_round", lambda: (rounds.append(1), original())[1])
    # Rows 1 and 2 in the first, or where the prompt was read as text only row 1, then one each.
    each = 11 if network.text_rows else 10
    settle(engine)
    assert len(rounds) == each
    settle(engine)
    assert len(rounds) == 2 * each
