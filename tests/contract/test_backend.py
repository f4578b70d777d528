"""What every backend promises the synthesizer (engine/interface.py), whichever model it is."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from higgs_server.backends import embedded, higgs_v2, remote
from higgs_server.backends.higgs_v2 import packed
from higgs_server.backends.higgs_v2.onnx_model import OnnxNetwork, load_onnx
from higgs_server.engine.interface import Backend
from higgs_server.types import (
    SAMPLING_RATE,
    AudioChunk,
    Cancellation,
    Cancelled,
    Clip,
    Feature,
    LoadOptions,
    SamplingParams,
    Scene,
    Script,
    Unsupported,
    Voice,
)
from make_tiny_checkpoint import make_tiny_checkpoint
from server_process import ServerProcess


def _embedded(progress: Callable[[str, float], None]) -> Backend:
    return embedded.load(LoadOptions(model_path="embedded"), progress)


@cache
def _tiny() -> tempfile.TemporaryDirectory[str]:
    """Lives as long as the process: a codec reads its listening half when the first clip comes."""
    folder = tempfile.TemporaryDirectory()
    make_tiny_checkpoint(Path(folder.name), layout="native", seed=2)
    return folder


def _higgs(progress: Callable[[str, float], None], **options: str) -> Backend:
    kept = Path(_tiny().name) / "cache"
    kept.mkdir(exist_ok=True)
    with mock.patch.object(packed, "cache_folder", return_value=kept):
        return higgs_v2.load(LoadOptions(model_path=_tiny().name, **options), progress)


def _higgs_on_onnx(progress: Callable[[str, float], None]) -> Backend:
    """With the checkpoint's own weights, which the server leaves to torch."""

    def load_model(folder: Path, *_: object) -> OnnxNetwork:
        return load_onnx(folder, "none", progress)

    with mock.patch.object(higgs_v2.backend, "load_model", load_model):
        return _higgs(progress, device="cpu")


@cache
def _upstream() -> ServerProcess:
    """A server like ours to stand in front of; ends with the module."""
    server = ServerProcess(["--model-path", _tiny().name]).__enter__()
    server.wait_ready()
    return server


def _remote(progress: Callable[[str, float], None]) -> Backend:
    return remote.load(LoadOptions(model_path=_upstream().url), progress)


BACKENDS = {
    "embedded": _embedded,
    "higgs_v2": _higgs,
    "higgs_v2-onnx": _higgs_on_onnx,
    "higgs_v2-int8": partial(_higgs, device="cpu", quantization="int8"),
    "higgs_v2-int4": partial(_higgs, device="cpu", quantization="int4"),
    "remote": _remote,
}


@pytest.fixture(scope="module", autouse=True)
def _no_server_left() -> Iterator[None]:
    yield
    if _upstream.cache_info().currsize:
        _upstream().stop()


class Loaded:
    """A backend and what it reported while it was loaded."""

    def __init__(self, load: Callable[[Callable[[str, float], None]], Backend]) -> None:
        self.progress: list[tuple[str, float]] = []
        self.backend = load(lambda stage, fraction: self.progress.append((stage, fraction)))


@pytest.fixture(scope="module", params=BACKENDS)
def loaded(request: pytest.FixtureRequest) -> Iterator[Loaded]:
    it = Loaded(BACKENDS[request.param])
    yield it
    it.backend.close()


@pytest.fixture
def backend(loaded: Loaded) -> Backend:
    return loaded.backend


def script(*chunks: str, seed: int = 7, max_new_tokens: int = 2048) -> Script:
    return Script(chunks, SamplingParams(seed=seed, max_new_tokens=max_new_tokens))


SHORT = script("Yes, of course.")
LONG = script(*(f"And number {n}." for n in range(40)))


def speak(backend: Backend, what: Script) -> list[AudioChunk]:
    return list(backend.speak(what, Cancellation()))


def joined(chunks: list[AudioChunk]) -> np.ndarray:
    return np.concatenate([chunk.samples for chunk in chunks])


def test_says_what_it_is_and_how_far_loading_has_come(loaded: Loaded) -> None:
    info = loaded.backend.info
    assert info.name
    assert info.device
    assert info.max_new_tokens > 0
    assert {Feature.SINGLE_SPEAKER, Feature.STREAMING} <= info.features
    fractions = [fraction for _, fraction in loaded.progress]
    assert fractions == sorted(fractions)
    assert 0 <= fractions[0] < fractions[-1] == 1


def test_chunks_come_in_order_and_only_the_last_says_why_it_ended(backend: Backend) -> None:
    chunks = speak(backend, script("The first piece.", "The second piece."))
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason in ("stop", "length", "guard")
    assert [chunk.chunk for chunk in chunks] == sorted(chunk.chunk for chunk in chunks)
    assert {chunk.chunk for chunk in chunks} == {0, 1}
    assert {chunk.chunks for chunk in chunks} == {2}


def test_samples_are_finite_float32_within_range_and_not_silent(backend: Backend) -> None:
    samples = joined(speak(backend, script("One.", "Two.", "Three.", "Four.")))
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert np.isfinite(samples).all()
    assert 0.05 < np.abs(samples).max() <= 1
    assert len(samples) > 0.3 * SAMPLING_RATE


def test_the_same_seed_gives_the_same_bits(backend: Backend) -> None:
    np.testing.assert_array_equal(joined(speak(backend, SHORT)), joined(speak(backend, SHORT)))


def test_several_threads_at_once_do_not_mix(backend: Backend) -> None:
    texts = [script("Yes, of course."), script("Maybe tomorrow."), script("好的，谢谢。")]
    alone = [joined(speak(backend, text)) for text in texts]
    with ThreadPoolExecutor(len(texts)) as pool:
        together = list(pool.map(lambda text: joined(speak(backend, text)), texts))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_max_new_tokens_ends_the_speech(backend: Backend) -> None:
    """In each chunk; noise of a tiny model may end before, six times hardly."""
    sentences = (f"And so we went on and on, as if the road had no end at all, {n} times." for n in range(6))
    chunks = speak(backend, script(*sentences, max_new_tokens=20))
    assert chunks[-1].finish_reason == "length"
    assert all(len(joined([c for c in chunks if c.chunk == n])) <= 20 * SAMPLING_RATE / 25 for n in range(6))


def test_a_cancellation_before_the_start_is_obeyed(backend: Backend) -> None:
    cancellation = Cancellation()
    cancellation.cancel()
    with pytest.raises(Cancelled):
        list(backend.speak(SHORT, cancellation))


def test_a_cancellation_in_the_middle_is_obeyed_and_leaves_the_backend_usable(backend: Backend) -> None:
    before = joined(speak(backend, SHORT))
    cancellation = Cancellation()
    stream = backend.speak(LONG, cancellation)
    heard = [next(stream)]
    threading.Timer(0.05, cancellation.cancel).start()  # from another thread, most likely within a step
    with pytest.raises(Cancelled):
        heard.extend(stream)
    assert max(piece.chunk for piece in heard) < len(LONG.chunks) - 1
    np.testing.assert_array_equal(joined(speak(backend, SHORT)), before)


def test_a_stream_nobody_reads_on_does_not_hold_up_the_others(backend: Backend) -> None:
    before = joined(speak(backend, SHORT))
    abandoned = backend.speak(LONG, Cancellation())
    next(abandoned)
    np.testing.assert_array_equal(joined(speak(backend, SHORT)), before)
    abandoned.close()  # type: ignore[attr-defined]
    np.testing.assert_array_equal(joined(speak(backend, SHORT)), before)


NEEDS = {
    Feature.VOICE_CLONING: replace(
        SHORT, voices=(Voice("upload", "Hello.", clip=Clip(np.zeros(SAMPLING_RATE, np.float32))),)
    ),
    Feature.SCENE: replace(SHORT, scene=Scene("on_a_ship", "Waves and wind.", Path("on_a_ship.txt"))),
}


@pytest.mark.parametrize("feature", NEEDS)
def test_what_it_does_not_offer_it_refuses_before_any_sound(backend: Backend, feature: Feature) -> None:
    if feature in backend.info.features:
        backend.check(NEEDS[feature])
    else:
        with pytest.raises(Unsupported) as refusal:
            backend.check(NEEDS[feature])
        assert "api_server.py --model-path" in str(refusal.value)
        assert refusal.value.param in ("ref_audio", "scene_prompt")


@pytest.mark.parametrize("load", BACKENDS.values(), ids=list(BACKENDS))
def test_close_is_idempotent_and_ends_what_is_being_spoken(load: Callable[[object], Backend]) -> None:
    backend = load(lambda stage, fraction: None)
    stream = backend.speak(LONG, Cancellation())
    next(stream)
    backend.close()
    backend.close()
    with pytest.raises(Cancelled):
        list(stream)
