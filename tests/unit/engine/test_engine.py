"""The engine as its clients see it, whatever network it runs: rows, seeds, prefixes, limits, and a long life."""

from __future__ import annotations

import gc
import random
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from engine_clients import PATIENCE, a_request, alone, frames_of, params, rows_of, settle, text_of
from fake_model import FakeModel, prompt
from higgs_server.engine.engine import Engine
from higgs_server.engine.handle import Handle
from higgs_server.engine.interface import FrameModel, Run
from higgs_server.types import Cancelled, InvalidRequest, SamplingParams
from scripted_model import ScriptedModel

pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def expected_rows(network: FrameModel, number: int) -> list[list[int]]:
    return alone(network, *a_request(number))


# --- generation -----------------------------------------------------------------------------------------------------


def test_an_utterance_streams_its_frames_and_says_how_it_ended(engine: Engine) -> None:
    handle = engine.submit(prompt(1, 2, 3), params(rows=30))
    frames = frames_of(handle)
    assert handle.finish_reason == "length"
    assert handle.rows.shape == (30, 8)
    assert (handle.rows[0] == FakeModel.stream_bos_id).all()
    diagonal = np.array([[handle.rows[f + 1 + k, k] for k in range(8)] for f in range(22)])
    assert (frames == diagonal).all()


def test_frames_are_handed_out_while_the_next_ones_are_made(model: ScriptedModel) -> None:
    gate = threading.Semaphore(7)  # row 1 comes with the prompt
    model.on_call = lambda name: name == "prefill" or gate.acquire(timeout=PATIENCE)
    with Engine(model, slots=1, max_len=400) as engine:
        handle = engine.submit(prompt(1, 2, 3), params(rows=12))
        for number in range(1, 5):
            assert len(next(handle)) == 1
            assert len(handle.rows) == 8 + number
            gate.release()
        assert list(handle) == []
        assert handle.finish_reason == "length"


@pytest.mark.parametrize(("row", "codebook"), [(1, 0), (3, 2), (12, 5), (20, 0)])
def test_an_end_code_ends_the_utterance_eight_rows_later(model: ScriptedModel, row: int, codebook: int) -> None:
    model.ends[5] = (2 + row - 1, codebook)  # the prompt has two positions; row r - 1 is what row r follows
    with Engine(model, slots=2, max_len=400) as engine:
        handle = engine.submit(prompt(5, 6), params(rows=100))
        frames = frames_of(handle)
    assert handle.finish_reason == "stop"
    assert len(handle.rows) == row + 8 + 1
    assert (handle.rows[-1] == FakeModel.stream_eos_id).all()
    assert len(frames) == max(0, row - 1 - codebook)
    assert frames.max(initial=0) < FakeModel.stream_bos_id


def test_a_seed_gives_the_same_rows_alone_and_among_others_that_come_and_go(
    network: FrameModel, engine: Engine
) -> None:
    expected = [expected_rows(network, n) for n in range(12)]
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
def test_reading_behind_the_device_and_padding_change_nothing(
    network: FrameModel, model: ScriptedModel, lookahead: int, padded: bool
) -> None:
    with Engine(model, slots=5, max_len=400, prefill_budget=16) as engine:
        engine._runner.lookahead, engine._runner.padded = lookahead, padded
        handles = [engine.submit(*a_request(n)) for n in range(9)]
        assert [rows_of(handle) for handle in handles] == [expected_rows(network, n) for n in range(9)]
        settle(engine)
    assert not padded or set(model.decoded) <= {1, 2, 4, 5}


def test_a_voices_prefix_is_prefilled_once_and_changes_nothing(
    network: FrameModel, engine: Engine, model: ScriptedModel
) -> None:
    def request(number: int) -> tuple[list[Run], SamplingParams]:
        return prompt(*range(1, 30), 200 + number), params(seed=number)

    expected = [alone(network, *request(n), prefix_len=29) for n in range(3)]
    with engine._wake:  # taken in together
        handles = [engine.submit(*request(n), prefix_len=29) for n in range(3)]
    assert [rows_of(handle) for handle in handles] == expected
    assert [start for _, start, _ in model.prefilled] == [0, 16, 29, 29, 29]
    assert (engine.stats().prefix_hits, engine.stats().prefix_misses) == (2, 1)


def test_a_prefix_outlives_the_engine_and_changes_nothing(network: FrameModel, tmp_path: Path) -> None:
    """From the disk too: after a restart only what is new is prefilled."""
    rows = []
    for kept in (0, 29):
        model = ScriptedModel(network)
        with Engine(model, slots=1, max_len=400, prefill_budget=16, prefix_folder=tmp_path) as engine:
            rows.append(rows_of(engine.submit(prompt(*range(1, 30), 200, audio=9), params(), prefix_len=29)))
            assert engine.stats().prefix_hits == (1 if kept else 0)
        assert model.prefilled[0][1] == kept
    assert rows[0] == rows[1]


def test_a_long_prompt_does_not_hold_up_a_running_stream(model: ScriptedModel) -> None:
    """While 300 positions are prefilled in pieces of 16, the stream that runs gets a row after every piece."""
    calls: list[str] = []
    model.on_call = calls.append
    with Engine(model, slots=2, max_len=400, prefill_budget=16) as engine:
        with engine._wake:  # taken in together
            stream = engine.submit(prompt(1), params(rows=390))
            long = engine.submit(prompt(*text_of(300)), params(rows=10))
        frames_of(long)
        stream.cancel()
    pieces = [n for n, call in enumerate(calls) if call == "prefill"]
    assert len(pieces) == 1 + 19
    assert all(calls[n + 1] == "decode" for n in pieces)


# --- the guard ------------------------------------------------------------------------------------------------------


def test_endless_repetition_ends_as_guard_with_the_tail_cut(engine: Engine, model: ScriptedModel) -> None:
    model.constant.add(4)
    handle = engine.submit(prompt(4), params(rows=390, temperature=0.0, ras_win_len=0))
    frames = frames_of(handle)
    assert handle.finish_reason == "guard"
    assert len(frames) == 11
    assert len(handle.rows) == 59
    free = engine.submit(prompt(4), params(rows=100, temperature=0.0, ras_win_len=0), repeat_limit=None)
    assert len(frames_of(free)) == 92
    assert free.finish_reason == "length"


def test_the_frame_budget_ends_as_guard(engine: Engine) -> None:
    handle = engine.submit(prompt(4), params(rows=300), frame_budget=25)
    assert len(frames_of(handle)) == 25
    assert handle.finish_reason == "guard"


# --- limits ---------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_with_numbers(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match=r"300 positions.*101.*400.*at most 100") as refused:
        engine.submit(prompt(*text_of(300)), params(rows=101))
    assert refused.value.param == "max_new_tokens"
    assert "100" in refused.value.zh
    with pytest.raises(InvalidRequest, match=r"400 positions.*400") as refused:
        engine.submit(prompt(*text_of(400)), params(rows=1))
    assert refused.value.param == "text"
    whole = engine.submit(prompt(*text_of(300)), params(rows=100))
    assert len(frames_of(whole)) == 92
    assert whole.finish_reason == "length"


def test_a_single_row_needs_no_model(engine: Engine, model: ScriptedModel) -> None:
    handle = engine.submit(prompt(1), params(rows=1))
    assert rows_of(handle) == [[FakeModel.stream_bos_id] * 8]
    assert handle.finish_reason == "length"
    assert not model.prefilled


# --- a long life ----------------------------------------------------------------------------------------------------


def test_random_requests_with_random_cancels_leave_nothing_behind(network: FrameModel, model: ScriptedModel) -> None:
    """From four threads, cancelled before, between and after their frames; what is not cancelled is unharmed."""
    each = 250 if isinstance(network, FakeModel) else 30
    with Engine(model, slots=8, max_len=200, prefill_budget=16, prefix_bytes=2000) as engine:
        engine._runner.lookahead = 1
        shape = engine._runner._cache.tensor.shape
        handles: weakref.WeakSet[Handle] = weakref.WeakSet()
        requests = [(number, prefix) for number in range(10) for prefix in (0, 1)]
        expected = {(n, prefix): alone(network, *a_request(n, rows=16), prefix_len=prefix) for n, prefix in requests}

        def client(first: int) -> int:
            dice = random.Random(first)
            finished = 0
            for _ in range(each):
                number, prefix = dice.choice(requests)
                handle = engine.submit(*a_request(number, rows=16), prefix_len=prefix)
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
                    assert handle.rows.tolist() == expected[number, prefix]
                    finished += 1
                except Cancelled:
                    assert patience == 0
                handle.cancel()
            return finished

        with ThreadPoolExecutor(4) as pool:
            finished = sum(pool.map(client, range(4)))
        settle(engine)
        assert finished > each // 2
        assert engine._runner.prefixes.bytes <= 2000
        assert engine._runner._cache.tensor.shape == shape
        assert not engine._cancelled
        gc.collect()
        assert not handles
    assert "engine" not in {thread.name for thread in threading.enumerate()}
