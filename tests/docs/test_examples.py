"""What ships under examples/ is whole: every voice has clip and transcript, every text and description loads."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import pytest

from docs.page import ROOT
from higgs_server.backends.embedded.voices import VOICES
from higgs_server.library.profiles import ProfileLibrary
from higgs_server.library.scenes import SceneLibrary
from higgs_server.library.voices import VoiceLibrary
from higgs_server.text.dialogue import parse_turns, speakers
from higgs_server.text.normalize import normalize
from higgs_server.types import DEFAULT_SCENE

EXAMPLES = ROOT / "examples"
TRANSCRIPTS = sorted((EXAMPLES / "transcripts").rglob("*.txt"))


def test_clips_are_the_embedded_voices() -> None:
    assert {voice.name for voice in VoiceLibrary(EXAMPLES / "voice_prompts").list()} == VOICES.keys()


@pytest.mark.parametrize("name", VOICES)
def test_clip_and_transcript(name: str) -> None:
    voice = VoiceLibrary(EXAMPLES / "voice_prompts").get(name)
    assert voice.file
    with wave.open(str(voice.file)) as clip:
        assert (clip.getframerate(), clip.getnchannels(), clip.getsampwidth()) == (24_000, 1, 2)
        seconds = clip.getnframes() / clip.getframerate()
    assert 5 <= seconds <= 8
    # About 2 to 5 English words or 2.5 to 7 Chinese characters a second: a transcript of another clip stands out.
    assert voice.transcript
    units = len(voice.transcript.split()) if voice.transcript.isascii() else len(voice.transcript)
    assert 1.5 <= units / seconds <= 7


def test_scenes() -> None:
    scenes = {scene.name: scene.content for scene in SceneLibrary(EXAMPLES / "scene_prompts").list()}
    assert {DEFAULT_SCENE, "reading_blog"} < scenes.keys()
    assert len(scenes) >= 5
    assert all(content.isascii() and content.endswith(".") and len(content) < 200 for content in scenes.values())


def test_profiles() -> None:
    profiles = {profile.name: profile.description for profile in ProfileLibrary(EXAMPLES / "voice_prompts").list()}
    assert len(profiles) >= 5
    assert all(text.isascii() and text.endswith(".") and len(text) < 300 for text in profiles.values())


def test_profile_is_the_one_of_the_reference_prompt() -> None:
    cases = json.loads((ROOT / "tests/golden/prompts.json").read_text("utf-8"))["cases"]
    prompt = next(case["prompt"] for case in cases if case["name"] == "profile")
    description = ProfileLibrary(EXAMPLES / "voice_prompts").get("male_en_british").description
    assert f"SPEAKER0: {description}\n<|scene_desc_end|>" in prompt


@pytest.mark.parametrize("file", TRANSCRIPTS, ids=lambda file: file.stem)
def test_transcript_parses(file: Path) -> None:
    text = normalize(file.read_text("utf-8"))
    turns = parse_turns(text)
    if file.parent.name == "multi_speaker":
        assert len(turns) == len(text.splitlines())
        assert speakers(text) == list(range(len(speakers(text))))
        assert len(speakers(text)) >= 2
    else:
        assert [turn.speaker for turn in turns] == [None]


def test_transcripts_in_both_languages_for_one_and_for_several() -> None:
    kinds = {(file.parent.name, file.stem[:2]) for file in TRANSCRIPTS}
    assert kinds >= {(kind, language) for kind in ("single_speaker", "multi_speaker") for language in ("en", "zh")}
