"""From a script to pieces of sound: who speaks, when, how long, and what is refused. The network is a stand-in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from higgs_server.backends.embedded.backend import EmbeddedBackend
from higgs_server.backends.embedded.voices import VOICES, style
from higgs_server.types import (
    DEFAULT_SCENE,
    SAMPLING_RATE,
    AudioChunk,
    Cancellation,
    Cancelled,
    Clip,
    InvalidRequest,
    Profile,
    SamplingParams,
    Scene,
    Script,
    SpeechError,
    Unsupported,
    Voice,
)


class Network:
    """Hums 0.05 s a phoneme at half scale, and remembers in which voice."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.closed = 0

    def say(self, ids: Sequence[int], row: npt.NDArray[np.float32], cancellation: Cancellation) -> np.ndarray:
        cancellation.check()
        (voice,) = [name for name, voice in VOICES.items() if np.array_equal(style(voice, len(ids)), row)]
        self.calls.append((voice, len(ids)))
        time = np.arange(round(0.05 * len(ids) * SAMPLING_RATE)) / SAMPLING_RATE
        return (0.5 * np.sin(2 * np.pi * 200 * time)).astype(np.float32)

    def close(self) -> None:
        self.closed += 1

    @property
    def voices(self) -> list[str]:
        return [voice for voice, _ in self.calls]


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
def backend(network: Network) -> EmbeddedBackend:
    return EmbeddedBackend(network)  # type: ignore[arg-type]


def script(*chunks: str, voices: str = "", max_new_tokens: int = 2048) -> Script:
    named = tuple(Voice(name) for name in voices.split(",") if name)
    return Script(chunks, SamplingParams(seed=1, max_new_tokens=max_new_tokens), voices=named)


def speak(backend: EmbeddedBackend, what: Script) -> list[AudioChunk]:
    return list(backend.speak(what, Cancellation()))


def pauses(chunks: list[AudioChunk]) -> list[float]:
    """Seconds of exact silence at the start of each piece, the last chunk left out."""
    return [round(float(np.flatnonzero(chunk.samples)[0]) / SAMPLING_RATE, 2) for chunk in chunks[:-1]]


# --- who speaks -----------------------------------------------------------------------------------------------------


def test_each_voice_speaks_under_its_name(backend: EmbeddedBackend, network: Network) -> None:
    for name in VOICES:
        speak(backend, script("Hello there.", voices=name))
    assert network.voices == list(VOICES)


def test_a_voice_that_was_asked_for_speaks_whatever_the_language(backend: EmbeddedBackend, network: Network) -> None:
    speak(backend, script("Hello there.\n今天天气很好。", voices="chadwick"))
    assert network.voices == ["chadwick", "chadwick"]


def test_without_a_voice_each_sentence_gets_the_default_of_its_language(
    backend: EmbeddedBackend, network: Network
) -> None:
    speak(backend, script("Hello there.\n今天天气很好。\n我在用Python写程序。"))
    assert network.voices == ["belinda", "zh_woman", "zh_woman"]


def test_voices_go_to_speakers_in_order(backend: EmbeddedBackend, network: Network) -> None:
    speak(backend, script("[SPEAKER1] You first.\n[SPEAKER0] After you.", voices="mabel,en_man"))
    assert network.voices == ["en_man", "mabel"]


def test_speakers_without_voices_are_told_apart_feminine_and_masculine_by_turns(
    backend: EmbeddedBackend, network: Network
) -> None:
    turns = "\n".join(f"[SPEAKER{n}] I am one of them." for n in range(4))
    speak(backend, script(turns + "\n[SPEAKER0] 我们都在这里。\n[SPEAKER1] 是的。"))
    *english, chinese_0, chinese_1 = network.voices
    assert len(set(english)) == 4
    assert [VOICES[name].gender for name in english] == ["feminine", "masculine"] * 2
    assert {VOICES[name].language for name in english} == {"en"}
    assert [VOICES[name].language for name in (chinese_0, chinese_1)] == ["zh", "zh"]
    assert [VOICES[name].gender for name in (chinese_0, chinese_1)] == ["feminine", "masculine"]


def test_a_speaker_keeps_the_voice_in_later_pieces(backend: EmbeddedBackend, network: Network) -> None:
    speak(backend, script("[SPEAKER2] Hello.", "[SPEAKER5] Hello.", "[SPEAKER2] Goodbye."))
    assert network.voices[0] == network.voices[2] != network.voices[1]


# --- what is heard --------------------------------------------------------------------------------------------------


def test_pauses_are_longer_between_turns_and_paragraphs(backend: EmbeddedBackend) -> None:
    one, two, three, other = pauses(speak(backend, script("One day.\nTwo days. Three days.\n[SPEAKER1] No way.")))
    assert one == 0
    assert 0.2 < three < other < two < 1


def test_a_turn_cut_into_pieces_goes_on_without_a_longer_pause(backend: EmbeddedBackend) -> None:
    apart = pauses(speak(backend, script("[SPEAKER0] One day.", "[SPEAKER0] Two days.", "[SPEAKER1] No way.")))
    assert apart[1] < apart[2]


def test_pieces_meet_at_zero(backend: EmbeddedBackend) -> None:
    for chunk in speak(backend, script("One, two. Three, four.\nFive.")):
        assert chunk.samples[0] == chunk.samples[-1] == 0


def test_a_long_first_sentence_begins_with_a_clause(backend: EmbeddedBackend, network: Network) -> None:
    text = (
        "When the last train had left the station, the old man picked up his suitcase and walked home, because nobody "
        "was there to wait for him any longer."
    )
    speak(backend, script(text + " " + text))
    first, rest, whole = (count for _, count in network.calls)
    assert 20 < first < 60
    assert whole > rest > first


def test_the_first_of_six_sentences_is_a_small_part_of_the_work(backend: EmbeddedBackend) -> None:
    text = " ".join(f"Sentence number {word} is short." for word in ("one", "two", "three", "four", "five", "six"))
    lengths = [len(chunk.samples) for chunk in speak(backend, script(text))]
    assert lengths[0] < 0.25 * sum(lengths)


def test_no_call_is_longer_than_the_network_takes(backend: EmbeddedBackend, network: Network) -> None:
    speak(backend, script("and so on and on it went " * 200, "他们一直走啊走啊走" * 100))
    assert max(count for _, count in network.calls) <= 508


def test_sound_tags_are_not_read_aloud(backend: EmbeddedBackend, network: Network) -> None:
    speak(backend, script("Well <SE>[Laughter]</SE> hello."))
    speak(backend, script("Well hello."))
    (_, tagged), (_, plain) = network.calls
    assert tagged <= plain + 1


def test_a_sentence_without_words_is_passed_over(backend: EmbeddedBackend, network: Network) -> None:
    chunks = speak(backend, script("Hello.", "...", "!?"))
    assert len(network.calls) == 1
    assert chunks[-1].finish_reason == "stop"


@pytest.mark.parametrize("tokens", [1, 5, 11, 12, 13, 40])
def test_max_new_tokens_is_25_a_second(backend: EmbeddedBackend, tokens: int) -> None:
    chunks = speak(backend, script("One more thing. And another thing.", max_new_tokens=tokens))
    assert sum(len(chunk.samples) for chunk in chunks) == tokens * 960
    assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert chunks[-1].samples.size == 0 or abs(chunks[-1].samples[-1]) < 1e-6


def test_max_new_tokens_holds_for_each_piece(backend: EmbeddedBackend, network: Network) -> None:
    chunks = speak(
        backend, script("One more thing. And another thing. And so on.", "Yes.", "And yet one more.", max_new_tokens=12)
    )
    seconds = [sum(len(c.samples) for c in chunks if c.chunk == chunk) / SAMPLING_RATE for chunk in range(3)]
    assert all(0 < length <= 12 / 25 + 0.1 for length in seconds)
    assert chunks[-1].finish_reason == "length"
    spoken = len(network.calls)
    whole = speak(backend, script("One more thing. And another thing. And so on."))
    assert whole[-1].finish_reason == "stop"
    # What is cut off is not computed either.
    assert spoken < 2 * (len(network.calls) - spoken)


def test_a_cancellation_between_sentences_is_obeyed(backend: EmbeddedBackend, network: Network) -> None:
    cancellation = Cancellation()
    stream = backend.speak(script("One day. Two days. Three days."), cancellation)
    next(stream)
    cancellation.cancel()
    with pytest.raises(Cancelled):
        next(stream)
    assert len(network.calls) == 1


def test_close_closes_the_network(backend: EmbeddedBackend, network: Network) -> None:
    backend.close()
    assert network.closed == 1


# --- what is refused ------------------------------------------------------------------------------------------------

HELLO = script("Hello.")


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        (replace(HELLO, voices=(Voice("x", clip=Clip(np.zeros(9, np.float32))),)), "ref_audio"),
        (replace(HELLO, voices=(Voice("belinda", clip=Clip(np.zeros(9, np.float32))),)), "ref_audio"),
        (replace(HELLO, voices=(Voice("belinda"), Voice("my_uncle"))), "ref_audio"),
        (replace(HELLO, profile=Profile("elder", "An old man.")), "ref_audio"),
        (replace(HELLO, scene=Scene("on_a_ship", "Waves.", Path("x.txt"))), "scene_prompt"),
    ],
)
def test_what_only_the_real_model_can_do_is_refused_with_the_way_out(
    backend: EmbeddedBackend, asked: Script, param: str
) -> None:
    with pytest.raises(Unsupported) as refusal:
        backend.check(asked)
    assert refusal.value.param == param
    assert refusal.value.status == 422
    for message in (str(refusal.value), refusal.value.zh):
        assert "python api_server.py --model-path bosonai/higgs-audio-v2-generation-3B-base" in message


@pytest.mark.parametrize("scene", [None, Scene(DEFAULT_SCENE, "A quiet room.", Path("x.txt"))])
def test_no_scene_and_the_default_one_are_fine(backend: EmbeddedBackend, scene: Scene | None) -> None:
    backend.check(replace(HELLO, scene=scene))


def test_a_speaker_beyond_the_voices_is_named(backend: EmbeddedBackend) -> None:
    with pytest.raises(InvalidRequest, match=r"\[SPEAKER2\].*2 voice") as refusal:
        backend.check(script("[SPEAKER0] Hi.", "[SPEAKER2] Hi.", voices="belinda,mabel"))
    assert refusal.value.param == "ref_audio"
    backend.check(script("[SPEAKER0] Hi.\n[SPEAKER1] Hi.", voices="belinda,mabel"))
    backend.check(script("[SPEAKER0] Hi.\n[SPEAKER7] Hi."))


@pytest.mark.parametrize("text", ["😀😀", "...", "?!", "[SPEAKER0]", "<SE>[Laughter]</SE>."])
def test_text_without_words_is_refused(backend: EmbeddedBackend, text: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        backend.check(script(text))
    assert refusal.value.param == "text"


@pytest.mark.parametrize("text", ["5", "Hi", "好", "😀 yes", "... 25°C"])
def test_a_single_word_or_number_is_enough(backend: EmbeddedBackend, text: str) -> None:
    backend.check(script(text))


def test_refusals_are_speech_errors_in_both_languages(backend: EmbeddedBackend) -> None:
    with pytest.raises(SpeechError) as refusal:
        backend.check(script("..."))
    assert refusal.value.zh != str(refusal.value)


def test_info_says_loudly_what_it_is(backend: EmbeddedBackend) -> None:
    assert backend.info.name == "embedded"
    assert backend.info.note is not None
    assert "NOT Higgs Audio" in backend.info.note
    assert "--model-path bosonai/higgs-audio-v2-generation-3B-base" in backend.info.note
