"""Slots and prefixes: copies are exact, keys depend on content alone, memory stays within its bound."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_model import FakeModel, prompt
from higgs_server.engine.interface import AudioRun, TextRun
from higgs_server.engine.kv_cache import KVCache, PrefixCache, prefix_key


def test_a_prefix_copied_out_and_in_is_the_same_and_nothing_else_changes() -> None:
    cache = KVCache(FakeModel(), slots=3, max_len=20)
    cache.tensor.copy_(torch.rand_like(cache.tensor))
    before = cache.tensor.clone()
    cache.copy_in(2, cache.copy_out(0, 7))
    assert torch.equal(cache.tensor[:, :, 2, :, :7], before[:, :, 0, :, :7])
    assert torch.equal(cache.tensor[:, :, 2, :, 7:], before[:, :, 2, :, 7:])
    assert torch.equal(cache.tensor[:, :, :2], before[:, :, :2])
    cache.scrub(1)
    assert not cache.tensor[:, :, 1].any()
    assert torch.equal(cache.tensor[:, :, 0], before[:, :, 0])


def test_a_copy_is_not_a_view() -> None:
    cache = KVCache(FakeModel(), slots=1, max_len=4)
    kept = cache.copy_out(0, 4)
    cache.tensor.fill_(1)
    assert not kept.any()


def test_keys_tell_contents_apart() -> None:
    text, other = TextRun(np.array([1, 2, 3])), TextRun(np.array([1, 2, 4]))
    rows = AudioRun(np.arange(16).reshape(2, 8))
    key = prefix_key([text, rows], 5)
    assert key != prefix_key([other, rows], 5)
    assert key != prefix_key([text, AudioRun(rows.rows[::-1])], 5)
    assert key != prefix_key([text, rows], 4)
    assert prefix_key([TextRun(np.arange(8)), text], 9) != prefix_key([AudioRun(np.arange(8)[None]), text], 2)
    assert key == prefix_key([text, rows, other], 5)
    cut = [TextRun(np.array([1])), TextRun(np.array([2, 3])), AudioRun(rows.rows[:1]), AudioRun(rows.rows[1:])]
    assert key == prefix_key(cut, 5)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 9), max_size=60))
def test_the_least_recently_used_go_first(uses: list[int]) -> None:
    size = torch.zeros(2, 3).nbytes
    cache = PrefixCache(max_bytes=3 * size)
    recent: list[int] = []
    hits = 0
    for number in uses:
        key = bytes([number])
        found = cache.get(key)
        assert (found is not None) == (number in recent[-3:])
        if found is None:
            cache.put(key, torch.full((2, 3), float(number)))
        else:
            assert (found == number).all()
            hits += 1
        recent = [seen for seen in recent if seen != number] + [number]
        assert cache.bytes == len(cache) * size <= cache.max_bytes
    assert (cache.hits, cache.misses) == (hits, len(uses) - hits)


def test_a_prefix_larger_than_the_bound_is_not_kept() -> None:
    model = FakeModel()
    cache = KVCache(model, slots=1, max_len=20)
    prefixes = PrefixCache(max_bytes=cache.copy_out(0, 5).nbytes)
    assert prefixes.room_for(5, cache)
    assert not prefixes.room_for(6, cache)
    prefixes.put(b"small", cache.copy_out(0, 5))
    prefixes.put(b"large", cache.copy_out(0, 6))
    assert b"small" in prefixes
    assert b"large" not in prefixes


def test_the_key_does_not_need_the_whole_prompt_in_runs_of_its_own() -> None:
    assert prefix_key(prompt(1, 2, 3, 4), 2) == prefix_key(prompt(1, 2), 2)
