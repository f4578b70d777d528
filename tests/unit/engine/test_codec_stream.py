from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from higgs_server.engine.codec_stream import CodecStream, CodecWorker, FrameWindower, decode_whole
from higgs_server.types import Cancelled, GenerationFailed, Samples

HOP = 4
CONTEXT = 3
BROKEN = 999
"""A code that makes the codec below fail."""


class NeighbourCodec:
    """Each sample depends, exactly, on the CONTEXT frames before and after its own; silence counts as -1."""

    sampling_rate = 24_000
    hop_length = HOP
    num_codebooks = 2
    context_frames = CONTEXT

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def encode(self, samples: Samples) -> np.ndarray:
        raise NotImplementedError

    def decode(self, codes: np.ndarray, left: int = 0, right: int = 0) -> np.ndarray:
        self.entered.set()
        assert self.gate.wait(10)
        self.batches.append(codes.shape)
        if (codes == BROKEN).any():
            raise RuntimeError("broken code")
        value = codes[..., 0] + 16 * codes[..., 1]
        padded = np.pad(value, ((0, 0), (CONTEXT, CONTEXT)), constant_values=-1).astype(np.float64)
        mixed = sum(padded[:, i : i + value.shape[1]] * 3.0**i for i in range(2 * CONTEXT + 1))
        wanted = mixed[:, left : value.shape[1] - right, None]
        return (wanted + np.arange(HOP)).reshape(len(codes), -1).astype(np.float32)


@pytest.fixture
def codec() -> NeighbourCodec:
    return NeighbourCodec()


@pytest.fixture
def worker(codec: NeighbourCodec) -> Iterator[CodecWorker]:
    worker = CodecWorker(codec, first=1, largest=4)
    yield worker
    codec.gate.set()
    worker.close()


def frames(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 16, (n, 2))


def speak(stream: CodecStream, codes: np.ndarray, *, step: int = 1) -> Samples:
    """Pushes and reads as a request does."""
    heard = [np.zeros(0, np.float32)]
    for start in range(0, len(codes), step):
        stream.push(codes[start : start + step])
        heard.append(stream.ready())
    stream.finish()
    return np.concatenate([*heard, *stream])


arrivals = st.lists(st.integers(1, 9), max_size=25)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(arrivals=arrivals, first=st.integers(1, 6), largest=st.integers(1, 12))
def test_windows_join_up_to_the_whole_decode(arrivals: list[int], first: int, largest: int) -> None:
    codec = NeighbourCodec()
    windower = FrameWindower(CONTEXT, first, largest)
    codes = frames(sum(arrivals))
    windows = []
    for start, n in zip(np.cumsum([0, *arrivals]), arrivals, strict=False):
        windows += windower.push(codes[start : start + n])
    windows += windower.finish()
    pieces = [codec.decode(window.codes[None], window.left, window.right)[0] for window in windows]
    joined = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    np.testing.assert_array_equal(joined, decode_whole(codec, codes))


@settings(derandomize=True, max_examples=50, deadline=None)
@given(arrivals=arrivals)
def test_the_windows_do_not_depend_on_how_frames_arrive(arrivals: list[int]) -> None:
    codes = frames(sum(arrivals))
    together, singly = FrameWindower(CONTEXT, 2, 8), FrameWindower(CONTEXT, 2, 8)
    one = [window for start in range(len(codes)) for window in singly.push(codes[start : start + 1])]
    all_at_once = together.push(codes) if len(codes) else []
    one, all_at_once = one + singly.finish(), all_at_once + together.finish()
    assert [(w.left, w.right, w.codes.tolist()) for w in one] == [
        (w.left, w.right, w.codes.tolist()) for w in all_at_once
    ]


def test_the_whole_decode_repeats_the_last_frame(codec: NeighbourCodec) -> None:
    codes = frames(5)
    longer = np.concatenate([codes, np.repeat(codes[-1:], 20, axis=0)])
    np.testing.assert_array_equal(decode_whole(codec, codes), codec.decode(longer[None])[0][: 5 * HOP])
    assert decode_whole(codec, codes[:0]).shape == (0,)


def test_windows_start_small_grow_and_carry_full_context() -> None:
    windower = FrameWindower(10, first=2, largest=32)
    windows = [window for _ in range(300) for window in windower.push(frames(1))]
    new = [len(window.codes) - window.left - window.right for window in windows]
    assert new[0] == 2
    assert new == sorted(new)
    assert set(new[-4:]) == {32}
    assert {(window.left, window.right) for window in windows[4:]} == {(10, 10)}


def test_the_first_sound_needs_only_first_and_context() -> None:
    windower = FrameWindower(10, first=2, largest=32)
    assert windower.push(frames(11)) == []
    assert len(windower.push(frames(1))) == 1


def test_wanted_is_what_completes_the_next_window_and_not_a_frame_less() -> None:
    windower = FrameWindower(10, first=2, largest=32)
    for surplus in (0, 1, 5, 0, 40, 0, 0):
        assert windower.push(frames(windower.wanted - 1)) == []
        assert len(windower.push(frames(1 + surplus))) >= 1


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 17, 60])
@pytest.mark.parametrize("step", [1, 7])
def test_a_stream_equals_the_whole(worker: CodecWorker, codec: NeighbourCodec, n: int, step: int) -> None:
    with worker.open() as stream:
        heard = speak(stream, frames(n), step=step)
    np.testing.assert_array_equal(heard, decode_whole(codec, frames(n)))


def test_many_streams_at_once_do_not_mix(worker: CodecWorker, codec: NeighbourCodec) -> None:
    heard: dict[int, Samples] = {}

    def one(seed: int) -> None:
        with worker.open() as stream:
            heard[seed] = speak(stream, frames(10 + 3 * seed, seed), step=1 + seed % 3)

    threads = [threading.Thread(target=one, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for seed in range(12):
        np.testing.assert_array_equal(heard[seed], decode_whole(codec, frames(10 + 3 * seed, seed)))
    assert not worker._streams
    assert not worker._pending


def hold(codec: NeighbourCodec, worker: CodecWorker) -> CodecStream:
    """Occupies the worker with another stream's window until the gate is opened."""
    codec.entered.clear()
    codec.gate.clear()
    other = worker.open()
    other.push(frames(1 + CONTEXT))
    assert codec.entered.wait(10)
    return other


def test_equal_windows_share_a_batch_and_none_overtakes(worker: CodecWorker, codec: NeighbourCodec) -> None:
    hold(codec, worker)
    streams = [worker.open() for _ in range(3)]
    for seed, stream in enumerate(streams):
        stream.push(frames(30, seed))
    codec.gate.set()
    for stream in streams:
        stream.finish()
    for seed, stream in enumerate(streams):
        np.testing.assert_array_equal(np.concatenate(list(stream)), decode_whole(codec, frames(30, seed)))
    assert any(shape[0] >= 3 for shape in codec.batches)


def test_a_batch_has_its_limit(codec: NeighbourCodec) -> None:
    worker = CodecWorker(codec, first=1, max_batch=1)
    hold(codec, worker)
    streams = [worker.open() for _ in range(3)]
    for stream in streams:
        stream.push(frames(5))
        stream.finish()
    codec.gate.set()
    for stream in streams:
        assert len(np.concatenate(list(stream))) == 5 * HOP
    worker.close()
    assert {shape[0] for shape in codec.batches} == {1}


def test_pushing_never_waits_for_the_codec(worker: CodecWorker, codec: NeighbourCodec) -> None:
    hold(codec, worker)
    stream = worker.open()
    for _ in range(50):
        stream.push(frames(1))
    assert len(stream.ready()) == 0
    codec.gate.set()
    stream.finish()
    assert len(np.concatenate(list(stream))) == 50 * HOP


@pytest.mark.parametrize("code", [0, BROKEN])
def test_who_does_something_else_is_told_when_there_is_sound_or_a_failure(worker: CodecWorker, code: int) -> None:
    stream, told = worker.open(), threading.Event()
    stream.on_ready(told.set)
    stream.push(np.full((stream.wanted, 2), code))
    assert told.wait(10)
    if code == BROKEN:
        with pytest.raises(GenerationFailed):
            stream.ready()
    else:
        assert len(stream.ready()) == HOP


def test_an_error_ends_only_its_own_stream(worker: CodecWorker, codec: NeighbourCodec) -> None:
    hold(codec, worker)
    good, bad = worker.open(), worker.open()
    good.push(frames(30))
    bad.push(np.where(np.arange(30)[:, None] == 9, BROKEN, frames(30)))
    codec.gate.set()
    good.finish()
    bad.finish()
    np.testing.assert_array_equal(np.concatenate(list(good)), decode_whole(codec, frames(30)))
    for ask in (lambda: list(bad), bad.ready):
        with pytest.raises(GenerationFailed, match="RuntimeError") as failed:
            ask()
        assert str(failed.value.__cause__) == "broken code"
    assert bad not in worker._streams


def test_a_fault_of_the_thread_itself_ends_what_waits_and_no_more(
    worker: CodecWorker, codec: NeighbourCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = codec.decode
    monkeypatch.setattr(codec, "decode", lambda *window: shape(*window)[:0])  # fewer windows than were given
    broken = worker.open()
    broken.push(frames(30))
    with pytest.raises(GenerationFailed):
        list(broken)
    monkeypatch.undo()
    np.testing.assert_array_equal(speak(worker.open(), frames(30)), decode_whole(codec, frames(30)))


def test_cancelling_drops_what_is_pending(worker: CodecWorker, codec: NeighbourCodec) -> None:
    hold(codec, worker)
    stream = worker.open()
    stream.push(frames(30))
    stream.cancel()
    assert all(entry[0] is not stream for entry in worker._pending)
    with pytest.raises(Cancelled):
        stream.ready()
    stream.push(frames(30))  # frames that were on their way
    assert all(entry[0] is not stream for entry in worker._pending)
    codec.gate.set()
    with pytest.raises(Cancelled):
        list(stream)


def test_cancelling_after_the_end_changes_nothing(worker: CodecWorker, codec: NeighbourCodec) -> None:
    stream = worker.open()
    stream.push(frames(9))
    stream.finish()
    heard = next(stream)
    while len(heard) < 9 * HOP:
        heard = np.concatenate([heard, next(stream)])
    stream.cancel()
    assert list(stream) == []


def test_closing_ends_the_thread_and_every_stream(codec: NeighbourCodec) -> None:
    worker = CodecWorker(codec, first=1)
    held = hold(codec, worker)
    waiting = worker.open()
    failures: list[BaseException] = []

    def read() -> None:
        try:
            list(waiting)
        except Cancelled as error:
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    closer = threading.Thread(target=worker.close)
    closer.start()
    codec.gate.set()
    closer.join(10)
    reader.join(10)
    assert not closer.is_alive()
    assert not worker._thread.is_alive()
    assert len(failures) == 1
    with pytest.raises(Cancelled):
        held.ready()
    with pytest.raises(Cancelled):
        worker.open()
