"""From a script to sound on a tiny checkpoint: context that fits, guards that end, codes that match the samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from higgs_server.backends.higgs_v2 import backend as module
from higgs_server.backends.higgs_v2 import loading, packed
from higgs_server.backends.higgs_v2.backend import HiggsBackend, Take, codec_of
from higgs_server.backends.higgs_v2.loading import choose_device, choose_dtype, choose_quantization
from higgs_server.engine.codec_stream import decode_whole
from higgs_server.engine.interface import AudioRun
from higgs_server.engine.sequence import positions_of
from higgs_server.synthesizer import join
from higgs_server.text.duration import slow_seconds
from higgs_server.types import (
    Cancellation,
    Clip,
    InvalidRequest,
    LoadError,
    LoadOptions,
    SamplingParams,
    Script,
    Speech,
    Voice,
)
from make_tiny_checkpoint import make_tiny_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny_checkpoint(folder, layout="original", seed=3)
    return folder


def loaded(folder: Path, **options: Any) -> HiggsBackend:
    return HiggsBackend.load(LoadOptions(model_path=str(folder), **options), lambda stage, fraction: None)


@pytest.fixture(scope="module")
def backend(folder: Path) -> Iterator[HiggsBackend]:
    backend = loaded(folder)
    yield backend
    backend.close()


def script(*chunks: str, max_new_tokens: int = 48, **sampling: Any) -> Script:
    return Script(chunks, SamplingParams(seed=1, max_new_tokens=max_new_tokens, **sampling))


def spoken(backend: HiggsBackend, what: Script) -> Speech:
    return join(what, list(backend.speak(what, Cancellation())))


def test_streamed_sound_is_the_whole_decode_of_its_codes(backend: HiggsBackend) -> None:
    speech = spoken(backend, script("The lake lay still.", max_new_tokens=150, temperature=1.5, top_p=1.0, top_k=None))
    assert speech.codes is not None
    whole = decode_whole(backend._codec.get(), speech.codes)
    assert len(whole) == len(speech.samples) > 0
    assert np.abs(whole - speech.samples).max() <= 1e-4


def test_no_chunk_but_the_last_is_without_sound(backend: HiggsBackend) -> None:
    """Every chunk goes through threads and encoders on its way to the client."""
    what = script("And then it was over, and nobody spoke of it again.", max_new_tokens=90, temperature=0.0)
    *chunks, last = backend.speak(what, Cancellation())
    assert len(chunks) > 2
    assert all(len(chunk.samples) for chunk in chunks)
    assert last.finish_reason is not None


def test_a_clip_counts_once_a_request(folder: Path) -> None:
    backend = loaded(folder)
    try:
        for level in (0.1, 0.2, 0.1):
            voice = Voice("upload", clip=Clip(np.full(24_000, level, np.float32)))
            what = replace(script("Hello.", max_new_tokens=12), voices=(voice,))
            backend.check(what)
            spoken(backend, what)
        assert (backend.stats().clip_hits, backend.stats().clip_misses) == (1, 2)
    finally:
        backend.close()


def prompts(backend: HiggsBackend, what: Script, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Speaks; what each prompt that reached the engine had: chunks of context, positions."""
    sent = []
    fit = backend._fit

    def spy(*arguments: Any) -> Take:
        take = fit(*arguments)
        answers = sum(isinstance(run, AudioRun) for run in take.runs) - 1
        sent.append((answers, positions_of(take.runs)))
        return take

    monkeypatch.setattr(backend, "_fit", spy)
    spoken(backend, what)
    return sent


def test_the_context_shrinks_until_the_answer_fits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    what = script(*["And then it was over, and nobody spoke of it again."] * 4, max_new_tokens=60)
    roomy = loaded(folder, guard=0.0)
    whole = prompts(roomy, what, monkeypatch)
    roomy.close()
    assert [context for context, _ in whole] == [0, 1, 2, 2]
    # Room for the third chunk's prompt with one chunk before it, not with two.
    tight = loaded(folder, guard=0.0, max_context=whole[2][1] + 60 - 2)
    cut = prompts(tight, what, monkeypatch)
    tight.close()
    assert [context for context, _ in cut][:3] == [0, 1, 1]
    assert all(positions + 60 - 1 <= whole[2][1] + 60 - 2 for _, positions in cut)


def test_where_only_the_context_holds_the_voice_it_stays_if_the_text_usually_fits(folder: Path) -> None:
    backend = loaded(folder, max_context=900)
    text = "And then it was over, and nobody spoke of it again."
    spoken_before = {0: np.zeros((100, 8), np.int64)}
    clip = Voice("clip", "Hello.", clip=Clip(np.zeros(24_000, np.float32)))
    try:
        for voices, context in (((), 1), ((clip,), 0)):
            what = replace(script(text, text, max_new_tokens=600), voices=voices)
            clips = [backend._clips.of(voice) for voice in voices]
            take = backend._fit(what, 1, clips, spoken_before)
            assert sum(isinstance(run, AudioRun) for run in take.runs) - 1 - len(clips) == context
            most = take.sampling.max_new_tokens
            assert most is not None
            assert (most == 600) is bool(voices)
            assert positions_of(take.runs) - 1 + most <= 900
    finally:
        backend.close()


def test_a_short_context_has_room_for_requests_that_ask_for_no_length(folder: Path) -> None:
    backend = loaded(folder, max_context=1_024)
    try:
        assert backend.info.max_new_tokens == 512
        backend.check(script("word " * 60, max_new_tokens=backend.info.max_new_tokens))
    finally:
        backend.close()


def test_a_prompt_that_cannot_fit_is_refused_with_numbers(folder: Path) -> None:
    backend = loaded(folder, max_context=300, guard=0.0)
    try:
        backend.check(script("Short."))
        for what in (script("word " * 400), script("Short.", max_new_tokens=290)):
            with pytest.raises(InvalidRequest, match="300"):
                backend.check(what)
    finally:
        backend.close()


def test_the_frame_budget_makes_room_for_what_the_text_needs(backend: HiggsBackend) -> None:
    # 4,096 positions do not hold a prompt and 4,090 rows, but the text's budget ends it long before that.
    backend.check(script("Short.", max_new_tokens=4_090))


def test_a_model_that_does_not_end_is_ended_by_the_guard(folder: Path) -> None:
    backend = loaded(folder, guard=0.2)
    try:
        text = "Hi."
        budget = int(np.ceil(0.2 * slow_seconds(text) * 25))
        speeches = [
            spoken(backend, Script((text,), SamplingParams(seed=seed, max_new_tokens=500, temperature=1.8, top_k=None)))
            for seed in range(12)
        ]
        assert all(len(speech.samples) <= budget * 960 for speech in speeches)
        assert "guard" in {speech.finish_reason for speech in speeches}
    finally:
        backend.close()


def test_silence_without_end_is_cut_off(backend: HiggsBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = backend._codec.get()
    monkeypatch.setattr(
        codec, "decode", lambda codes, left, right: np.zeros((1, (codes.shape[1] - left - right) * 960))
    )
    sampling = {"max_new_tokens": 200, "temperature": 1.9, "top_k": None, "top_p": 1.0}
    speeches = [
        spoken(backend, Script(("A long tale. " * 20,), SamplingParams(seed=seed, **sampling))) for seed in range(12)
    ]
    cut_off = [speech for speech in speeches if speech.finish_reason == "guard"]
    assert cut_off
    assert all(len(speech.samples) <= 0.4 * 24_000 for speech in cut_off)
    # Nor does it go into the next chunk's prompt; what the first window looked ahead is out by then.
    assert all(speech.codes is not None and len(speech.codes) <= 20 for speech in cut_off)


def test_what_cut_one_chunk_short_is_what_the_whole_says(backend: HiggsBackend) -> None:
    what = script("One two three.", "Four five six.", max_new_tokens=12)
    assert spoken(backend, what).finish_reason == "length"


def test_sound_event_tags_and_digits_have_their_time() -> None:
    plain = slow_seconds("Well.")
    assert slow_seconds("Well. <SE>[Laughter]</SE>") >= plain + 10
    assert slow_seconds("Call 1234567890.") > slow_seconds("Call me.") + 4
    assert slow_seconds("你好世界") > slow_seconds("你好")


def test_the_codec_beside_the_model_is_found_unless_another_is_named(folder: Path) -> None:
    assert codec_of(folder, LoadOptions(model_path=str(folder))) == str(folder / "codec")
    named = LoadOptions(model_path=str(folder), audio_tokenizer_path="/elsewhere")
    assert codec_of(folder, named) == "/elsewhere"
    assert codec_of(folder / "codec", LoadOptions(model_path="x")) == module.DEFAULT_CODEC


def test_devices_and_types(folder: Path) -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cuda", "mps", "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(LoadError, match="cuda"):
            choose_device("cuda")
    assert choose_dtype("auto", torch.device("cpu"), folder) == torch.float32
    assert choose_dtype("auto", torch.device("cuda"), folder) == torch.bfloat16
    assert choose_dtype("bfloat16", torch.device("cpu"), folder) == torch.bfloat16
    with pytest.raises(LoadError, match="--dtype float16"):
        choose_dtype("float16", torch.device("cpu"), folder)


def test_bfloat16_speaks_too(folder: Path) -> None:
    backend = loaded(folder, dtype="bfloat16")
    try:
        assert backend.info.dtype == "bfloat16"
        assert len(spoken(backend, script("Good evening.", temperature=1.5)).samples)
    finally:
        backend.close()


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantised_it_speaks_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantization: str
) -> None:
    monkeypatch.setattr(packed, "cache_folder", lambda kind: tmp_path)
    backend = loaded(folder, quantization=quantization)
    try:
        assert backend.info.dtype == quantization
        assert backend.info.note
        several = script("Good evening.", "And good night.", "Good morning.", temperature=1.5)  # noise may end at once
        speech = spoken(backend, several)
        assert len(speech.samples)
        np.testing.assert_array_equal(speech.samples, spoken(backend, several).samples)
    finally:
        backend.close()


def test_quantisation_is_for_large_models_on_a_cpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(device: str, **options: Any) -> str:
        return choose_quantization(LoadOptions(model_path=str(folder), **options), torch.device(device), folder)

    assert [chosen("cpu"), chosen("cuda"), chosen("cpu", quantization="int4")] == ["none", "none", "int4"]
    assert chosen("cuda", quantization="int8") == "int8"
    monkeypatch.setattr(loading, "_WORTH_QUANTIZING", 1000)
    assert [chosen("cpu"), chosen("cuda"), chosen("cpu", quantization="none")] == ["int8", "none", "none"]
    assert chosen("cpu", dtype="float32") == "none"
    for device, quantization in (("cuda", "int4"), ("mps", "int8"), ("cpu", "int3")):
        with pytest.raises(LoadError, match=f"{quantization}.*{device}"):
            chosen(device, quantization=quantization)


def test_what_cannot_be_loaded_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="nowhere"):
        loaded(tmp_path / "nowhere")
    with pytest.raises(LoadError, match=r"config\.json"):
        loaded(tmp_path)
    with pytest.raises(LoadError, match="audio-tokenizer-path"):
        loaded(folder, audio_tokenizer_path=str(tmp_path / "nocodec"))
