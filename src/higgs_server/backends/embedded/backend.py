"""The embedded voice as a backend: a script -> turns -> sentences -> phonemes -> sound, one sentence at a time.

Knows no HTTP and no files of the user's. It has eight voices and one place to speak from; whatever else is asked for
it refuses before the first sound (DESIGN 5.5), never speaking with something else instead.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from higgs_server.backends import USE_HIGGS
from higgs_server.backends.embedded.heart import MAX_PHONEMES, Heart
from higgs_server.backends.embedded.heart import PACK as HEART
from higgs_server.backends.embedded.kokoro import Kokoro, read_weights
from higgs_server.backends.embedded.phonemes import MAX_TOKENS, phonemize, split_phonemes, to_ids
from higgs_server.backends.embedded.sound import fade, finish, silence
from higgs_server.backends.embedded.voices import VOICES, EmbeddedVoice, default_voice, style
from higgs_server.text.chunk import split_long
from higgs_server.text.dialogue import Turn, check_speakers, parse_turns, speakers
from higgs_server.text.language import Language, dominant_language, split_languages
from higgs_server.text.sentences import split_sentences
from higgs_server.types import (
    DEFAULT_SCENE,
    FRAMES_PER_SECOND,
    SAMPLING_RATE,
    AudioChunk,
    Cancellation,
    Cancelled,
    Feature,
    FinishReason,
    GenerationFailed,
    InvalidRequest,
    LoadOptions,
    ModelInfo,
    Progress,
    Samples,
    SamplingParams,
    Script,
    Unsupported,
)

log = logging.getLogger(__name__)

_NOTE = (
    "This is the small embedded voice (Kokoro-82M on the CPU), NOT Higgs Audio: eight voices, no cloning, no scenes, "
    "no sounds ([laugh] and its like are left out), and temperature, top_k, top_p, seed and ras_* change nothing. "
    f"For Higgs Audio v2 start `{USE_HIGGS}` (with the extra [higgs]; a GPU is advised)."
)
_SAMPLES_PER_TOKEN = SAMPLING_RATE // FRAMES_PER_SECOND
"""`max_new_tokens` counts frames of the real model, 25 a second."""
_CLAUSE, _SENTENCE, _TURN, _PARAGRAPH = 0.12, 0.32, 0.45, 0.6
"""Seconds of pause, besides the 0.09 s that every piece keeps around itself."""
_END = 0.1
"""Seconds of silence at the very end, for players that cut it off."""
_EARLY = 80
"""A first sentence of more phonemes than this (some 5 s) is cut at a clause, so that sound begins early."""
_SHORTEST = 25
"""Phonemes that such a piece has at least: less sounds like a word on its own."""
_MAX_WORDS = 60
"""Of a sentence without an end; this many words are spoken in one breath and fit the network, nearly always."""
_CLAUSE_END = re.compile(r"(?<=[,;:—]) ")


@dataclass(frozen=True, slots=True)
class _Sentence:
    """A sentence to be spoken. `chunk` is the piece of the script it belongs to, `pause` the seconds before it."""

    text: str
    language: Language
    """What it is mostly in; without any letters (`2024.`), what its turn is mostly in."""
    voice: EmbeddedVoice
    chunk: int
    pause: float

    @property
    def english(self) -> bool:
        """Whether all of it is English."""
        return all(language == "en" for language, _ in split_languages(self.text, self.language))


class EmbeddedBackend:
    """`engine.interface.Backend` over one Kokoro session."""

    def __init__(
        self, kokoro: Kokoro, heart: Heart | None = None, max_new_tokens: int = 2048, max_running: int | None = None
    ) -> None:
        """`heart` speaks the English of the voice it resembles; without it Kokoro does, more slowly.

        `max_running` None is one utterance a core: more of them would only share it.
        """
        self._kokoro = kokoro
        self._heart = heart
        self._closed = False
        self.info = ModelInfo(
            name="embedded",
            device="cpu",
            dtype="int8",
            features=frozenset({Feature.SINGLE_SPEAKER, Feature.MULTI_SPEAKER, Feature.SMART_VOICE, Feature.STREAMING}),
            max_new_tokens=max_new_tokens,
            max_running=max_running or os.cpu_count() or 1,
            note=_NOTE,
            extra={"voices": list(VOICES)},
        )

    @classmethod
    def load(cls, options: LoadOptions, progress: Progress) -> EmbeddedBackend:
        """Reads the weights and says a word, so that the first request does not wait for anything. Raises LoadError."""
        weights = read_weights(progress)
        progress("preparing the embedded voice", 0.5)
        backend = cls(Kokoro(weights), Heart(), options.max_new_tokens, options.max_running)
        del weights
        progress("warming up the embedded voice", 0.9)
        for text in ("Ready.", "好。"):
            list(backend.speak(Script((text,), SamplingParams(max_new_tokens=1)), Cancellation()))
        phonemize("Ready.", british=True)
        progress("ready", 1.0)
        return backend

    def check(self, script: Script) -> None:
        """Raises Unsupported for what only the real model can do, InvalidRequest for what nobody can say."""
        if script.profile is not None:
            raise _unsupported(
                f"voice profiles (profile:{script.profile.name})", f"音色描述（profile:{script.profile.name}）"
            )
        for voice in script.voices:
            if voice.clip is not None:
                raise _unsupported("cloning a voice from a recording", "用录音克隆音色")
            if voice.name not in VOICES:
                raise _unsupported(
                    f"the voice {voice.name!r} (its voices are {', '.join(VOICES)})",
                    f"音色 {voice.name!r}（可用的音色：{'、'.join(VOICES)}）",
                )
        if script.scene is not None and script.scene.name != DEFAULT_SCENE:
            raise _unsupported(f"the scene {script.scene.name!r}", f"场景 {script.scene.name!r}", param="scene_prompt")
        check_speakers(script.text, len(script.voices))
        if not any(map(_phonemes, _sentences(script))):
            raise InvalidRequest(
                "There is nothing to say in this text: it has no words that can be spoken.",
                "文本中没有可以朗读的内容。",
                param="text",
            )

    def speak(self, script: Script, cancellation: Cancellation) -> Iterator[AudioChunk]:
        """One AudioChunk a piece of a sentence, as soon as it is made. The last one says why it ended.

        `max_new_tokens` holds for each chunk of the script, as it does for the real model.
        """
        most = (script.sampling.max_new_tokens or self.info.max_new_tokens) * _SAMPLES_PER_TOKEN
        chunks, chunk = len(script.chunks), 0
        left = dict.fromkeys(range(chunks), most)
        for chunk, piece in self._pieces(script, cancellation, left):
            cut = len(piece) > left[chunk]
            yield AudioChunk(fade(piece[: left[chunk]], 0, 0.01) if cut else piece, chunk, chunks)
            left[chunk] = 0 if cut else left[chunk] - len(piece)
        ended: FinishReason = "stop" if all(left.values()) else "length"
        yield AudioChunk(silence(_END)[: left[chunk]], chunk, chunks, finish_reason=ended)

    def trouble(self) -> None:
        """Each call stands for itself: nothing outlasts a failed one."""

    def stats(self) -> None:
        """No engine runs here."""

    def close(self) -> None:
        """Idempotent."""
        self._closed = True
        self._kokoro.close()

    def _pieces(
        self, script: Script, cancellation: Cancellation, left: Mapping[int, int]
    ) -> Iterator[tuple[int, Samples]]:
        """(chunk, samples), each with the pause before it. A chunk with nothing `left` is passed over."""
        begun, pause = False, 0.0
        for sentence in _sentences(script):
            cancellation.check()
            pause = max(pause, sentence.pause)
            if not left[sentence.chunk]:
                continue
            fast = self._heart is not None and sentence.voice.pack == HEART and sentence.english
            for phonemes in _parts(_phonemes(sentence), early=not begun, most=MAX_PHONEMES if fast else MAX_TOKENS):
                if not left[sentence.chunk]:
                    break
                samples = finish(self._say(phonemes, sentence.voice, fast, cancellation))
                if len(samples):
                    yield sentence.chunk, np.concatenate([silence(pause if begun else 0), samples])
                    begun, pause = True, _CLAUSE

    def _say(self, phonemes: str, voice: EmbeddedVoice, fast: bool, cancellation: Cancellation) -> Samples:
        cancellation.check()
        if self._closed:
            raise Cancelled
        ids = to_ids(phonemes)
        try:
            if fast and self._heart is not None:
                return self._heart.say(phonemes)
            return self._kokoro.say(ids, style(voice, len(ids)), cancellation)
        except Cancelled:
            raise
        except Exception as error:
            log.exception("the network failed at %d phonemes", len(ids))
            raise GenerationFailed(error) from None


def _sentences(script: Script) -> Iterator[_Sentence]:
    everybody = speakers(script.text)
    before: Turn | None = None
    for chunk, text in enumerate(script.chunks):
        for n, turn in enumerate(parse_turns(text)):
            # A piece that starts within a turn repeats its tag: the turn goes on.
            goes_on = n == 0 and before is not None and before.speaker == turn.speaker
            pause = _SENTENCE if goes_on else _TURN
            for paragraph in turn.text.splitlines():
                for sentence in split_sentences(paragraph):
                    language = dominant_language(sentence if _has_letters(sentence) else turn.text)
                    voice = _voice(script, everybody, turn, language)
                    for piece in split_long(sentence, _MAX_WORDS):
                        yield _Sentence(piece, language, voice, chunk, pause)
                        pause = _CLAUSE
                    pause = _SENTENCE
                pause = _PARAGRAPH
            before = turn


def _voice(script: Script, everybody: list[int], turn: Turn, language: Language) -> EmbeddedVoice:
    """The voice that was asked for; without one, a default voice of the sentence's language or of the whole turn's."""
    if script.voices:
        return VOICES[script.voices[turn.speaker or 0].name]
    if turn.speaker is None:
        return default_voice(language)
    return default_voice(dominant_language(turn.text), everybody.index(turn.speaker))


def _has_letters(text: str) -> bool:
    return any(character.isalpha() for character in text)


def _phonemes(sentence: _Sentence) -> str:
    """ "" where there is nothing to say."""
    return phonemize(sentence.text, british=sentence.voice.british, default=sentence.language)


def _parts(phonemes: str, early: bool, most: int) -> list[str]:
    """Pieces of at most `most` phonemes; `early` makes the first one short."""
    head = 0
    if early and len(phonemes) > _EARLY:
        clause = _CLAUSE_END.search(phonemes, _SHORTEST, len(phonemes) - _SHORTEST)
        head = clause.end() if clause else 0
    return [*split_phonemes(phonemes[:head], most), *split_phonemes(phonemes[head:], most)]


def _unsupported(what: str, zh: str, param: str = "ref_audio") -> Unsupported:
    return Unsupported(
        f"The embedded voice cannot do this: {what}. Start `{USE_HIGGS}` for it.",
        f"内置语音不支持{zh}。请改用 `{USE_HIGGS}` 启动服务。",
        param=param,
    )
