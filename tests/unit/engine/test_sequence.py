"""One utterance: which frames its rows complete, when it ends and why, how its prompt is cut."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_model import prompt
from higgs_server.engine.delay import delay, undelay
from higgs_server.engine.guard import KEPT_REPEATS, LONGEST_CYCLE, Frame, RepetitionGuard, repeated_tail
from higgs_server.engine.interface import AudioRun, TextRun
from higgs_server.engine.sequence import CodeFormat, Sequence, positions_of, slice_runs
from higgs_server.types import SamplingParams

FORMAT = CodeFormat(codebooks=8, bos=1024, eos=1025)


def sequence(max_new_tokens: int = 200, **options: object) -> Sequence:
    sampling = SamplingParams(seed=1, max_new_tokens=max_new_tokens)
    return Sequence(prompt(1, 2, 3, bos=FORMAT.bos), sampling, FORMAT, **options)  # type: ignore[arg-type]


def feed(seq: Sequence, rows: np.ndarray) -> np.ndarray:
    """Appends rows until the sequence ends; returns the frames heard."""
    heard: list[Frame] = []
    for row in rows.tolist():
        if seq.finish_reason is None:
            heard += seq.append(row)
    return np.array(heard, dtype=np.int64).reshape(-1, 8)


def clip(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1024, (frames, 8))


def test_frames_are_heard_as_soon_as_a_row_completes_them() -> None:
    codes = clip(5)
    rows = delay(codes, FORMAT.bos, FORMAT.eos)
    seq = sequence()
    for number, row in enumerate(rows[1:], start=1):
        frames = seq.append(row.tolist())
        complete = 0 <= number - 8 < 5
        assert len(frames) == int(complete)
        if complete:
            assert (frames[0] == codes[number - 8]).all()
    assert seq.finish_reason == "stop"
    assert (seq.rows == rows).all()


def test_the_sound_ends_before_the_first_frame_with_an_end_code() -> None:
    """An end code in codebook 3 of row 12 belongs to frame 8; the ramp behind it takes eight more rows."""
    codes = clip(40)
    rows = delay(codes, FORMAT.bos, FORMAT.eos)[:21]
    rows[12, 3] = FORMAT.eos
    for step in range(1, 9):
        rows[12 + step, :step] = FORMAT.eos
    seq = sequence()
    heard = feed(seq, rows[1:])
    assert seq.finish_reason == "stop"
    assert len(seq.rows) == 21
    assert (heard == codes[:8]).all()


def test_a_stray_begin_code_is_read_as_the_last_code() -> None:
    codes = clip(6)
    codes[3, 2] = FORMAT.bos
    heard = feed(sequence(), delay(codes, FORMAT.bos, FORMAT.eos)[1:])
    assert heard[3, 2] == 1023
    assert len(heard) == 6


@pytest.mark.parametrize("limit", [1, 2, 8, 9, 30])
def test_max_new_tokens_counts_rows_the_first_included(limit: int) -> None:
    rows = delay(clip(60), FORMAT.bos, FORMAT.eos)
    seq = sequence(limit)
    heard = feed(seq, rows[1:])
    assert seq.finish_reason == "length"
    assert (seq.rows == rows[:limit]).all()
    assert len(heard) == max(0, limit - 8)


def test_the_frame_budget_ends_as_guard_and_only_where_it_is_the_smaller_limit() -> None:
    rows = delay(clip(60), FORMAT.bos, FORMAT.eos)
    seq = sequence(frame_budget=20)
    assert len(feed(seq, rows[1:])) == 20
    assert seq.finish_reason == "guard"
    seq = sequence(28, frame_budget=20)
    assert len(feed(seq, rows[1:])) == 20
    assert seq.finish_reason == "length"


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(0, 60), st.integers(1, 90), st.integers(0, 1000))
def test_heard_frames_are_the_undelayed_rows(frames: int, limit: int, seed: int) -> None:
    codes = clip(frames, seed)
    rows = delay(codes, FORMAT.bos, FORMAT.eos)
    seq = sequence(limit)
    heard = feed(seq, rows[1:])
    whole = undelay(seq.rows)[1:]
    assert (heard == whole[(whole < 1024).all(axis=1)]).all()
    assert seq.finish_reason == ("stop" if len(rows) <= limit else "length")


# --- the guard ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cycle", [1, 2, 3, 8])
def test_a_repeated_tail_is_cut_and_ends_as_guard(cycle: int) -> None:
    speech, loop = clip(30), clip(cycle, seed=7)
    codes = np.concatenate([speech, np.tile(loop, (100, 1))])
    seq = sequence(2000)
    heard = feed(seq, delay(codes, FORMAT.bos, FORMAT.eos)[1:])
    assert seq.finish_reason == "guard"
    assert (heard == codes[: 30 + cycle + KEPT_REPEATS]).all()
    assert len(seq.rows) <= 30 + cycle + 50 + 9


def test_nothing_is_lost_when_a_repetition_is_broken() -> None:
    pause = np.tile(clip(1, seed=3), (40, 1))
    codes = np.concatenate([clip(20), pause, clip(20, seed=5)])
    heard = feed(sequence(), delay(codes, FORMAT.bos, FORMAT.eos)[1:])
    assert (heard == codes).all()


def test_a_repetition_that_ends_by_itself_is_heard_whole() -> None:
    codes = np.concatenate([clip(20), np.tile(clip(1, seed=3), (30, 1))])
    seq = sequence()
    assert (feed(seq, delay(codes, FORMAT.bos, FORMAT.eos)[1:]) == codes).all()
    assert seq.finish_reason == "stop"


def test_the_repetition_guard_can_be_switched_off() -> None:
    codes = np.tile(clip(1), (150, 1))
    seq = sequence(repeat_limit=None)
    assert (feed(seq, delay(codes, FORMAT.bos, FORMAT.eos)[1:]) == codes).all()
    assert seq.finish_reason == "stop"


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=60))
def test_the_guard_withholds_exactly_the_tail_beyond_the_kept_repeats(codes: list[int]) -> None:
    frames = np.repeat(np.array(codes)[:, None], 8, axis=1)
    guard, heard = RepetitionGuard(limit=30, kept=4), 0
    for number, frame in enumerate(frames, start=1):
        heard += len(guard.feed(tuple(frame.tolist())))
        tail = max((repeats(codes[:number], cycle) for cycle in range(1, LONGEST_CYCLE + 1)), default=0)
        assert repeated_tail(frames[:number]) == tail
        assert guard.tripped == (tail >= 30)
        if guard.tripped:
            return
        assert (heard == number) == (tail <= 4)


def repeats(codes: list[int], cycle: int) -> int:
    """How many codes at the end equal the one `cycle` places before."""
    count = 0
    while count + cycle < len(codes) and codes[-1 - count] == codes[-1 - count - cycle]:
        count += 1
    return count


# --- the prompt -----------------------------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9)), min_size=1, max_size=5), st.integers(1, 12), st.data())
def test_a_prompt_in_pieces_is_the_same_prompt(kinds: list[tuple[bool, int]], piece: int, data: st.DataObject) -> None:
    runs = [
        TextRun(np.arange(n) + 100 * i) if text else AudioRun(np.arange(8 * n).reshape(n, 8) + i)
        for i, (text, n) in enumerate(kinds)
    ] + [AudioRun(np.full((1, 8), FORMAT.bos))]
    prefix = data.draw(st.integers(0, positions_of(runs) - 1))
    seq = Sequence(runs, SamplingParams(seed=0, max_new_tokens=9), FORMAT, prefix_len=prefix)
    cuts = [0]
    while cuts[-1] < seq.prompt_len:
        cuts.append(seq.next_cut(cuts[-1], piece))
    assert prefix in cuts
    assert max(np.diff(cuts)) <= piece
    flat = [code for a, b in itertools.pairwise(cuts) for code in flatten(slice_runs(seq.runs, a, b))]
    assert flat == flatten(seq.runs)


def flatten(runs: object) -> list[object]:
    return [
        item for run in runs for item in (run.token_ids.tolist() if isinstance(run, TextRun) else run.rows.tolist())
    ]  # type: ignore[attr-defined]


def test_a_prompt_ends_with_row_0() -> None:
    seq = sequence()
    assert seq.prompt_len == 4
    assert seq.rows.tolist() == [[FORMAT.bos] * 8]
    for runs in ([], prompt(1, 2)[:-1], prompt(1, 2, bos=7)):
        with pytest.raises(ValueError, match="stream-BOS"):
            Sequence(runs, SamplingParams(seed=0, max_new_tokens=9), FORMAT)


def test_a_prefix_longer_than_the_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="prefix of 4"):
        sequence(prefix_len=4)


def test_seed_and_length_must_be_settled() -> None:
    with pytest.raises(ValueError, match="settled"):
        Sequence(prompt(1, bos=FORMAT.bos), SamplingParams(), FORMAT)
