"""The story of an utterance with a backend that only remembers: names resolved, defaults filled in, one stream."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from higgs_server.library.profiles import ProfileLibrary
from higgs_server.library.scenes import SceneLibrary
from higgs_server.library.voices import VoiceLibrary
from higgs_server.synthesizer import Synthesizer
from higgs_server.types import (
    AudioChunk,
    Cancellation,
    Cancelled,
    Clip,
    Feature,
    InvalidRequest,
    ModelInfo,
    NotFound,
    Script,
    SpeechRequest,
    Unsupported,
    Voice,
)


class EchoBackend:
    """Answers a chunk of text with as many samples as it has characters, each the chunk's number."""

    info = ModelInfo("echo", "cpu", frozenset(Feature), max_new_tokens=500)

    def __init__(self) -> None:
        self.cancellations: list[Cancellation] = []

    def check(self, script: Script) -> None:
        if "forbidden" in script.text:
            raise Unsupported("no")

    def speak(self, script: Script, cancellation: Cancellation) -> Iterator[AudioChunk]:
        self.cancellations.append(cancellation)
        last = len(script.chunks) - 1
        for number, text in enumerate(script.chunks):
            samples = np.full(len(text), number, np.float32)
            yield AudioChunk(samples, number, last + 1, finish_reason="stop" if number == last else None)

    def close(self) -> None:
        pass


@pytest.fixture
def synthesizer(tmp_path: Path) -> Synthesizer:
    for name in ("anna", "bert"):
        (tmp_path / f"{name}.wav").write_bytes(b"x")
    (tmp_path / "quiet_indoor.txt").write_text("Quiet.")
    (tmp_path / "profile.yaml").write_text("profiles:\n  calm: A calm voice.\n")
    return Synthesizer(EchoBackend(), VoiceLibrary(tmp_path), SceneLibrary(tmp_path), ProfileLibrary(tmp_path))


def plan(synthesizer: Synthesizer, **fields: object) -> Script:
    return synthesizer.plan(SpeechRequest.parse(**fields))


def test_names_are_resolved_in_order(synthesizer: Synthesizer) -> None:
    script = plan(synthesizer, text="Hi", ref_audio="bert, anna")
    assert [voice.name for voice in script.voices] == ["bert", "anna"]
    assert script.scene is not None
    assert script.scene.content == "Quiet."
    script = plan(synthesizer, text="Hi", ref_audio="profile:calm", scene_prompt=None)
    assert (script.voices, script.scene) == ((), None)
    assert script.profile is not None
    assert script.profile.description == "A calm voice."
    assert plan(synthesizer, text="Hi", ref_audio=" ").voices == ()
    for fields in ({"ref_audio": "anna,nobody"}, {"ref_audio": "profile:wild"}, {"scene_prompt": "moon"}):
        with pytest.raises(NotFound):
            plan(synthesizer, text="Hi", **fields)


def test_an_uploaded_clip_takes_the_place_of_names(synthesizer: Synthesizer) -> None:
    clip = Voice("upload", "said", clip=Clip(np.zeros(10, np.float32)))
    script = synthesizer.plan(SpeechRequest.parse(text="Hi", ref_audio="anna"), clip)
    assert script.voices == (clip,)


def test_the_text_is_normalised_and_cut(synthesizer: Synthesizer) -> None:
    assert plan(synthesizer, text=" 你好，世界 ").chunks == ("你好, 世界.",)
    dialogue = "[SPEAKER0] One.\n[SPEAKER1] Two.\n[SPEAKER0] Three."
    assert len(plan(synthesizer, text=dialogue, chunk_method="speaker").chunks) == 3
    assert len(plan(synthesizer, text=dialogue, chunk_method="speaker", chunk_max_num_turns=2).chunks) == 2
    words = "One two three. Four five six. Seven eight nine."
    assert len(plan(synthesizer, text=words, chunk_method="word", chunk_max_word_num=3).chunks) == 3
    for nothing in ("", "  ", "\n\t"):
        with pytest.raises(InvalidRequest) as error:
            plan(synthesizer, text=nothing)
        assert error.value.param == "text"


def test_defaults_are_filled_in(synthesizer: Synthesizer) -> None:
    sampling = plan(synthesizer, text="Hi").sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.7, 50, 0.95)
    assert (sampling.ras_win_len, sampling.ras_win_max_num_repeat) == (7, 2)
    assert sampling.max_new_tokens == 500
    assert plan(synthesizer, text="Hi", max_new_tokens=9_999).sampling.max_new_tokens == 500
    assert plan(synthesizer, text="Hi", max_new_tokens=3, seed=0).sampling.max_new_tokens == 3
    seeds = {plan(synthesizer, text="Hi").sampling.seed for _ in range(20)}
    assert len(seeds) == 20
    assert plan(synthesizer, text="Hi", seed=0).sampling.seed == 0
    assert plan(synthesizer, text="Hi").context_chunks == 2
    assert plan(synthesizer, text="Hi", generation_chunk_buffer_size=0).context_chunks == 0


def test_the_whole_is_the_stream_joined(synthesizer: Synthesizer) -> None:
    options = {"chunk_method": "word", "chunk_max_word_num": 2, "seed": 5}
    text = "One two. Three four."
    pieces = list(synthesizer.stream(text, **options))
    speech = synthesizer.generate(text, **options)
    assert np.array_equal(np.concatenate([piece.samples for piece in pieces]), speech.samples)
    assert [piece.finish_reason for piece in pieces] == [None, "stop"]
    assert (speech.seed, speech.finish_reason, speech.sampling_rate) == (5, "stop", 24_000)
    assert speech.generated_text == "One two.\nThree four."


def test_what_cannot_be_spoken_is_refused_before_the_first_chunk(synthesizer: Synthesizer) -> None:
    with pytest.raises(Unsupported):
        synthesizer.stream("forbidden")
    with pytest.raises(InvalidRequest, match="temperature"):
        synthesizer.stream("Hi", temperature=9)
    with pytest.raises(InvalidRequest, match="seed"):
        synthesizer.generate("Hi", seed="x")
    for speak in (synthesizer.stream, synthesizer.generate):
        with pytest.raises(InvalidRequest, match="text: character 4 is half of one"):
            speak("Hi \ud800!")
    with pytest.raises(Unsupported, match="codec"):
        synthesizer.generate_codes("prompt")


def test_leaving_the_stream_cancels_the_backend(synthesizer: Synthesizer) -> None:
    stream = synthesizer.stream("One. Two.", chunk_method="word", chunk_max_word_num=1)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    backend = synthesizer.backend
    assert isinstance(backend, EchoBackend)
    assert backend.cancellations[-1].cancelled
    cancelled = Cancellation()
    cancelled.cancel()
    with pytest.raises(Cancelled):
        list(synthesizer.perform(plan(synthesizer, text="Hi"), cancelled))


def test_the_cancellation_of_whoever_asks_is_the_backends(synthesizer: Synthesizer) -> None:
    """Not only between two pieces: most of the waiting is before the first one."""
    cancellation = Cancellation()
    next(synthesizer.perform(plan(synthesizer, text="Hi"), cancellation))
    backend = synthesizer.backend
    assert isinstance(backend, EchoBackend)
    assert backend.cancellations[-1] is cancellation


def test_a_cancellation_tells_everyone_once() -> None:
    cancellation, told = Cancellation(), []
    cancellation.on_cancel(lambda: told.append("before"))
    cancellation.cancel()
    cancellation.cancel()
    cancellation.on_cancel(lambda: told.append("after"))
    assert told == ["before", "after"]
