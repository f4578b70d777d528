"""OpenAI's API without a server: what a voice's name means, and an encoder that is closed in the middle of its work."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from higgs_server.server import openai
from higgs_server.server.openai import EncodedSpeech, SpeechBody, VoiceId, _voice_name, plan_speech
from higgs_server.settings import Settings
from higgs_server.types import AudioChunk, ModelInfo, SamplingParams, Script, SpeechRequest, Voice


@pytest.mark.parametrize(
    ("voice", "known", "name"),
    [
        ("belinda", {"belinda"}, "belinda"),
        ("nova", {"belinda"}, "belinda"),
        ("NOVA", {"belinda"}, "belinda"),
        (VoiceId(id="nova"), {"belinda"}, "belinda"),
        ("nova", {"belinda", "nova"}, "nova"),  # the library's go first
        ("nova", {"ann"}, "nova"),  # so that the error names what was asked for
        ("nobody", {"belinda"}, "nobody"),
        ("", {"belinda"}, ""),
        (None, {"belinda"}, None),
    ],
)
def test_which_voice_a_name_means(voice: str | VoiceId | None, known: set[str], name: str | None) -> None:
    assert _voice_name(voice, known) == name


class SlowEncoder:
    """One that is told when to be ready."""

    def __init__(self) -> None:
        self.entered, self.ready, self.closed = threading.Event(), threading.Event(), threading.Event()
        self.encoding = False
        self.closed_while_encoding = False

    def feed(self, samples: Any) -> bytes:
        self.encoding = True
        self.entered.set()
        self.ready.wait(30)
        self.encoding = False
        return b"sound"

    def close(self) -> None:
        self.closed_while_encoding |= self.encoding
        self.closed.set()


def test_who_leaves_while_a_thread_encodes_waits_for_nothing_and_the_encoder_is_closed_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = SlowEncoder()
    monkeypatch.setattr(openai, "new_encoder", lambda name, streamed: encoder)

    async def pieces() -> AsyncIterator[AudioChunk]:
        yield AudioChunk(np.zeros(100, np.float32))

    async def leave() -> None:
        sound = EncodedSpeech(pieces(), SpeechBody(input="Hello.")).stream()
        first = asyncio.ensure_future(anext(sound))
        await asyncio.to_thread(encoder.entered.wait, 30)
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first
        assert not encoder.closed.is_set()
        encoder.ready.set()
        assert await asyncio.to_thread(encoder.closed.wait, 30)

    asyncio.run(leave())
    assert not encoder.closed_while_encoding


def test_a_voice_of_the_model_itself_goes_before_one_that_stands_for_it() -> None:
    info = ModelInfo("remote", "elsewhere", frozenset(), 100, extra={"voices": ("alloy",)})
    asked: list[SpeechRequest] = []

    def plan(request: SpeechRequest, *_: object) -> Script:
        asked.append(request)
        return Script((request.text,), SamplingParams())

    library = SimpleNamespace(list=lambda: [Voice("en_woman"), Voice("en_man")])
    synthesizer: Any = SimpleNamespace(voices=library, backend=SimpleNamespace(info=info), plan=plan)
    for voice in ("alloy", "echo"):
        plan_speech(SpeechBody(input="Hello.", voice=voice), synthesizer, Settings())
    assert [request.ref_audio for request in asked] == ["alloy", "en_man"]
