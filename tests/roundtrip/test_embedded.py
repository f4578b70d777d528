"""The embedded voice, heard by recognisers that know nothing of it: are the words right, and is it the right voice?"""

from __future__ import annotations

import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ears
from higgs_server.backends import embedded
from higgs_server.backends.embedded.voices import VOICES
from higgs_server.engine.interface import Backend
from higgs_server.types import AudioChunk, Cancellation, LoadOptions, SamplingParams, Script, Voice

CLIPS = Path(__file__).parents[2] / "examples/voice_prompts"


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    backend = embedded.load(LoadOptions(model_path="embedded"), lambda stage, fraction: None)
    yield backend
    backend.close()


def speak(backend: Backend, text: str, voices: str = "") -> list[AudioChunk]:
    named = tuple(Voice(name) for name in voices.split(",") if name)
    script = Script((text,), SamplingParams(seed=0, max_new_tokens=2048), voices=named)
    backend.check(script)
    return list(backend.speak(script, Cancellation()))


def joined(chunks: list[AudioChunk]) -> np.ndarray:
    return np.concatenate([chunk.samples for chunk in chunks])


def clip(name: str) -> tuple[np.ndarray, str]:
    """A shipped reference clip and what it says."""
    with wave.open(str(CLIPS / f"{name}.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    return samples, (CLIPS / f"{name}.txt").read_text("utf-8")


ENGLISH = {
    "belinda": "The museum opens at nine, but the guided tour begins half an hour later.",
    "chadwick": "On the third of March we counted 47 swans near the old stone bridge.",
    "en_woman": "Could you please send me the report before lunch, so that I can check the figures?",
}
CHINESE = {
    "zh_woman": "图书馆的二楼有一个安静的阅览室，学生们常常在那里复习功课。",
    "zh_man": "2024年5月20日，我们一共收到了36封来信，气温是25度。",
}


@pytest.mark.parametrize("voice", ENGLISH)
def test_english_is_understood(backend: Backend, voice: str) -> None:
    heard = ears.hear_english(joined(speak(backend, ENGLISH[voice], voice)))
    assert ears.word_error_rate(ENGLISH[voice], heard) <= 0.10, heard


@pytest.mark.parametrize("voice", CHINESE)
def test_chinese_is_understood(backend: Backend, voice: str) -> None:
    heard = ears.hear_chinese(joined(speak(backend, CHINESE[voice], voice)))
    assert ears.pinyin_error(CHINESE[voice], heard) <= 0.15, heard


def test_mixed_text_says_both_parts(backend: Backend) -> None:
    chunks = speak(backend, "The meeting starts in ten minutes. 会议马上就要开始了，请大家准备好。")
    english, chinese = joined(chunks[:1]), joined(chunks[1:])
    assert ears.word_error_rate("The meeting starts in ten minutes.", ears.hear_english(english)) <= 0.10
    assert ears.pinyin_error("会议马上就要开始了，请大家准备好。", ears.hear_chinese(chinese)) <= 0.15


def test_a_voice_says_words_of_the_other_language(backend: Backend) -> None:
    """Inside one sentence the recogniser bends foreign words to its language, so one clear word must do."""
    assert "windows" in ears.hear_chinese(joined(speak(backend, "请打开Windows电脑。", "belinda"))).lower()


def test_two_speakers_are_two_voices(backend: Backend) -> None:
    text = (
        "[SPEAKER0] I went down to the harbour this morning, and the boats were already coming home.\n"
        "[SPEAKER1] Then we should hurry over there now, because the best fish is always gone by noon."
    )
    first, second, _end = speak(backend, text, "mabel,en_man")
    for said, own, other in ((first, "mabel", "en_man"), (second, "en_man", "mabel")):
        assert ears.speaker_similarity(said.samples, clip(own)[0]) >= 0.75
        assert ears.speaker_similarity(said.samples, clip(other)[0]) < 0.75


@pytest.mark.parametrize("name", VOICES)
def test_a_shipped_clip_says_its_transcript(name: str) -> None:
    samples, transcript = clip(name)
    if VOICES[name].language == "en":
        heard, error = ears.hear_english(samples), ears.word_error_rate
    else:
        heard, error = ears.hear_chinese(samples), ears.pinyin_error
    assert error(transcript, heard) <= 0.05, heard


def test_the_shipped_clips_are_eight_different_people() -> None:
    """Clearly so within a language; between languages by the recogniser's point of equal error."""
    voices = list(VOICES.values())
    embeddings = [ears.speaker_embedding(clip(voice.name)[0]) for voice in voices]
    alike = {
        f"{a.name} and {b.name}": round(float(embeddings[i] @ embeddings[j]), 3)
        for i, a in enumerate(voices)
        for j, b in enumerate(voices[:i])
        if embeddings[i] @ embeddings[j] >= (0.75 if a.language == b.language else 0.795)
    }
    assert not alike


def test_no_clicks_where_pieces_are_joined_and_no_clipping(backend: Backend) -> None:
    chunks = speak(backend, "Wait, stop! Who is there? 是我。")
    samples = joined(chunks)
    assert np.abs(samples).max() < 1
    end = 0
    for chunk in chunks[:-1]:
        end += len(chunk.samples)
        around = samples[max(0, end - 48) : end + 48]
        # In speech at this level neighbouring samples differ by 0.05 and more; a click starts about there.
        assert np.abs(np.diff(around)).max() < 0.01
    levels = [np.sqrt(np.mean(chunk.samples[np.abs(chunk.samples) > 0.01] ** 2)) for chunk in chunks[:-1]]
    assert max(levels) < 1.6 * min(levels)


def test_the_ears_are_not_deaf() -> None:
    """Noise, speech played backwards and half of a sentence must not pass for the sentence."""
    samples, transcript = clip("belinda")
    noise = np.random.default_rng(0).normal(0, 0.08, len(samples)).astype(np.float32)
    for wrong in (noise, np.zeros_like(samples), samples[::-1], samples[: len(samples) // 2]):
        assert ears.word_error_rate(transcript, ears.hear_english(wrong)) > 0.3
    samples, transcript = clip("zh_woman")
    for wrong in (samples[::-1], samples[: len(samples) // 2]):
        assert ears.pinyin_error(transcript, ears.hear_chinese(wrong)) > 0.3
    assert ears.speaker_similarity(clip("belinda")[0], noise) < 0.75
