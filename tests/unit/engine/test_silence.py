"""The guard against endless silence loses no sound and lets no long silence through."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from higgs_server.engine.silence import BLOCK, SilenceGuard
from higgs_server.types import Samples


def sound(blocks: int) -> Samples:
    return np.full(blocks * BLOCK, 0.1, np.float32)


def silence(blocks: int) -> Samples:
    return np.full(blocks * BLOCK, 1e-4, np.float32)


def test_a_pause_is_held_and_then_given_back() -> None:
    guard = SilenceGuard(limit=4.0, kept=0.4)
    heard = [guard.feed(sound(5)), guard.feed(silence(60)), guard.feed(sound(1))]
    assert [len(samples) // BLOCK for samples in heard] == [5, 10, 51]
    assert not guard.tripped
    assert len(guard.rest()) == 0


def test_a_long_silence_trips_it_and_is_never_heard() -> None:
    guard = SilenceGuard(limit=4.0, kept=0.4)
    heard = np.concatenate(
        [guard.feed(sound(5)), guard.feed(silence(99)), guard.feed(silence(1)), guard.feed(sound(9))]
    )
    assert guard.tripped
    assert len(heard) == 15 * BLOCK
    assert len(guard.rest()) == 0


def test_silence_at_the_end_of_finished_speech_is_kept() -> None:
    guard = SilenceGuard()
    heard = guard.feed(np.concatenate([sound(3), silence(50)]))
    assert len(heard) + len(guard.rest()) == 53 * BLOCK


def test_switched_off_it_passes_everything() -> None:
    guard = SilenceGuard(None)
    assert len(guard.feed(silence(1_000))) == 1_000 * BLOCK
    assert not guard.tripped


@settings(derandomize=True, max_examples=200)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 99)), max_size=8), st.integers(1, 7))
def test_nothing_is_lost_or_moved_while_it_has_not_tripped(parts: list[tuple[bool, int]], step: int) -> None:
    pieces = [sound(blocks) if loud else silence(blocks) for loud, blocks in parts]
    whole = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    guard = SilenceGuard()
    heard = [guard.feed(whole[at : at + step * BLOCK]) for at in range(0, len(whole), step * BLOCK)]
    joined = np.concatenate([*heard, guard.rest()])
    if guard.tripped:
        assert np.array_equal(joined, whole[: len(joined)])
    else:
        assert np.array_equal(joined, whole)


@pytest.mark.parametrize("limit", [1.0, 2.0])
def test_the_limit_is_in_seconds(limit: float) -> None:
    guard = SilenceGuard(limit)
    guard.feed(silence(int(limit * 25) - 1))
    assert not guard.tripped
    guard.feed(silence(1))
    assert guard.tripped
