"""Slots and prefixes: copies are exact, keys depend on content alone, memory stays within its bound."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_model import FakeModel, prompt
from higgs_server.engine.interface import AudioRun, TextRun
from higgs_server.engine.kv_cache import KVCache, PrefixCache, prefix_key
from higgs_server.engine.prefix_files import MAX_PENDING, PrefixFiles


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


# --- on disk --------------------------------------------------------------------------------------------------------


def a_prefix(number: int) -> torch.Tensor:
    return torch.full((2, 2, 1, 100, 4), float(number))


def put(files: PrefixFiles, key: bytes, prefix: torch.Tensor) -> None:
    """And waits for the disk."""
    PrefixCache(10**6, files).put(key, prefix)
    files.close()


def test_a_prefix_outlives_the_process(tmp_path: Path) -> None:
    folder = tmp_path / "model" / "prefixes"
    put(PrefixFiles(folder), b"voice", a_prefix(3))
    later = PrefixCache(10**6, PrefixFiles(folder))
    for _ in range(2):
        found = later.get(b"voice")
        assert found is not None
        assert torch.equal(found, a_prefix(3))
    assert (later.hits, later.misses, later.bytes) == (2, 0, a_prefix(3).nbytes)
    assert later.get(b"other") is None
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("size", [0, 5, 3000])
def test_a_damaged_file_is_a_miss_and_is_made_again(tmp_path: Path, size: int) -> None:
    put(PrefixFiles(tmp_path), b"voice", a_prefix(3))
    (file,) = tmp_path.iterdir()
    os.truncate(file, size)
    assert PrefixCache(10**6, PrefixFiles(tmp_path)).get(b"voice") is None
    assert not file.exists()
    put(PrefixFiles(tmp_path), b"voice", a_prefix(4))
    found = PrefixFiles(tmp_path).get(b"voice")
    assert found is not None
    assert torch.equal(found, a_prefix(4))


def test_files_stay_within_their_bound_and_the_least_recently_used_go(tmp_path: Path) -> None:
    def bounded() -> PrefixFiles:
        return PrefixFiles(tmp_path, max_bytes=3 * 7000)  # three of 6.4 kB and a header

    for number in range(3):
        put(bounded(), bytes([number]), a_prefix(number))
        os.utime(tmp_path / f"{number:02x}.safetensors", (number, number))
    (tmp_path / "left by a killed process").write_bytes(bytes(900))
    os.utime(tmp_path / "left by a killed process", (0, 0))
    assert bounded().get(bytes([0])) is not None
    put(bounded(), bytes([3]), a_prefix(3))
    assert [bounded().get(bytes([number])) is not None for number in range(4)] == [True, False, True, True]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_folder_that_cannot_be_written_costs_only_the_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    files = PrefixFiles(tmp_path / "file")
    cache = PrefixCache(10**6, files)
    cache.put(b"voice", a_prefix(3))
    files.close()
    assert b"voice" in cache
    assert cache.get(b"other") is None


def test_a_slow_disk_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = threading.Event()

    def slowly(*arguments: Any) -> None:
        assert ready.wait(60)
        write(*arguments)

    write = PrefixFiles._write
    monkeypatch.setattr(PrefixFiles, "_write", slowly)
    files = PrefixFiles(tmp_path)
    cache = PrefixCache(10**6, files)
    for number in range(MAX_PENDING + 1):
        cache.put(bytes([number]), a_prefix(number))
    assert list(tmp_path.iterdir()) == []
    assert len(cache) == MAX_PENDING + 1
    ready.set()
    files.close()
    assert {file.stem for file in tmp_path.iterdir()} == {f"{number:02x}" for number in range(MAX_PENDING)}
