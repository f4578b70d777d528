"""Reference clips are encoded once, whoever asks and under whatever name, and the cache stays bounded."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest

from higgs_server.audio import wav
from higgs_server.backends.higgs_v2 import clips
from higgs_server.backends.higgs_v2.clips import ClipCodes
from higgs_server.types import BadAudio, Clip, Voice


class CountingCodec:
    """Gives a frame for every 960 samples and counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0
        self.busy = threading.Lock()

    def encode(self, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        assert self.busy.acquire(blocking=False), "two clips at once"
        self.calls += 1
        codes = np.full((len(samples) // 960, 8), self.calls, np.int64)
        self.busy.release()
        return codes


@pytest.fixture
def codec() -> CountingCodec:
    return CountingCodec()


@pytest.fixture
def cache(codec: CountingCodec) -> ClipCodes:
    return ClipCodes(lambda: codec)  # type: ignore[arg-type, return-value]


def uploaded(level: float, frames: int = 3) -> Voice:
    return Voice("upload", clip=Clip(np.full(frames * 960, level, np.float32)))


def listed(name: str, frames: int) -> Voice:
    return Voice(name, recording=wav.encode(np.full(frames * 960, 0.5, np.float32)))


def test_the_same_content_is_encoded_once(cache: ClipCodes, codec: CountingCodec) -> None:
    first = cache.of(uploaded(0.1))
    assert cache.of(uploaded(0.1)) is first
    assert codec.calls == 1
    assert cache.of(listed("a", frames=4)) is cache.of(listed("b", frames=4))
    assert codec.calls == 2


def test_a_replaced_recording_is_another_voice(cache: ClipCodes) -> None:
    before = cache.of(listed("a", frames=1))
    assert len(cache.of(listed("a", frames=2))) == 2 * len(before) == 2


def test_the_least_recently_used_goes_first(
    cache: ClipCodes, codec: CountingCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clips, "KEPT_CLIPS", 2)
    for level in (0.1, 0.2, 0.1, 0.3):
        cache.of(uploaded(level))
    assert (codec.calls, len(cache)) == (3, 2)
    cache.of(uploaded(0.1))
    assert codec.calls == 3
    cache.of(uploaded(0.2))
    assert codec.calls == 4


def test_many_requests_for_a_new_voice_wait_for_one_encoding(cache: ClipCodes, codec: CountingCodec) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: cache.of(uploaded(0.7)), range(32)))
    assert codec.calls == 1
    assert all(codes is found[0] for codes in found)


def test_a_request_that_asks_twice_is_counted_once(cache: ClipCodes) -> None:
    for voice in (uploaded(0.1), uploaded(0.2), uploaded(0.1)):
        assert cache.of(voice) is cache.of(voice, again=True)
    assert (cache.hits, cache.misses) == (1, 2)


def test_what_is_no_clip_is_said(cache: ClipCodes) -> None:
    with pytest.raises(BadAudio, match="too short"):
        cache.of(uploaded(0.1, frames=0))
    for data in (None, b"", b"RIFFxxxxWAVE"):
        with pytest.raises(BadAudio, match="cannot be used"):
            cache.of(Voice("bad", recording=data))
