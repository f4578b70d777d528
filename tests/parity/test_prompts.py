"""Prompts against the reference implementation's strings, and every other combination by the same rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from higgs_server.backends.higgs_v2.prompt import PLACEHOLDERS, Prompt, build_prompt, compose, compose_chunk
from higgs_server.text.normalize import normalize
from higgs_server.types import NotFound, Profile, SamplingParams, Scene, Script, Voice

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "prompts.json").read_text("utf-8"))
CASES: list[dict[str, Any]] = GOLDEN["cases"]
VOICES: dict[str, str | None] = GOLDEN["voices"]
PROFILES = {
    "male_en_british": "He speaks with a clear British accent and a conversational, inquisitive tone. His delivery is "
    "articulate and at a moderate pace, and very clear audio.",
    "calm": "A calm voice.",
}

BEGIN = "<|begin_of_text|>"
SYSTEM = "<|start_header_id|>system<|end_header_id|>\n\n"
USER = "<|start_header_id|>user<|end_header_id|>\n\n"
ASSISTANT = "<|start_header_id|>assistant<|end_header_id|>\n\n"
SPOKEN = "<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>"
HEARD = "<|audio_bos|><|AUDIO|><|audio_eos|>"
INSTRUCTION = "Generate audio following instruction."
ASK = f"{USER}Hello.<|eot_id|>{ASSISTANT}<|audio_out_bos|>"


def scene(*lines: str, instruction: str = INSTRUCTION) -> str:
    block = "\n".join(lines)
    return f"{BEGIN}{SYSTEM}{instruction}\n\n<|scene_desc_start|>\n{block}\n<|scene_desc_end|><|eot_id|>"


def past(words: str) -> str:
    return f"{USER}{words}<|eot_id|>{ASSISTANT}{SPOKEN}<|eot_id|>"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
@pytest.mark.parametrize("field", ["text", "normalized_text"])
def test_golden(case: dict[str, Any], field: str) -> None:
    assert normalize(case[field]) == case["normalized_text"]
    assert case["prompt"] == build_prompt(
        case[field],
        ref_audio=case["ref_audio"],
        scene=case["scene"],
        ref_audio_in_system_message=case["ref_audio_in_system_message"],
        voices=VOICES,
        profiles=PROFILES,
    )


ALICE, BOB, MUTE = Voice("alice", "Alice says."), Voice("bob", " Bob says.\n"), Voice("mute")
CALM = Profile("calm", "A calm voice.")


@pytest.mark.parametrize(
    ("voices", "scene_text", "in_scene", "before", "clips"),
    [
        ([MUTE], None, False, scene(f"SPEAKER0: {HEARD}"), (0,)),
        ([MUTE], "Quiet.", False, scene("Quiet.", "", f"SPEAKER0: {HEARD}"), (0,)),
        ([Voice("blank", " \n")], None, False, scene(f"SPEAKER0: {HEARD}"), (0,)),
        ([ALICE], None, True, scene(f"SPEAKER0: {HEARD}"), (0,)),
        ([ALICE, BOB], None, False, BEGIN + past("[SPEAKER0] Alice says.") + past("[SPEAKER1] Bob says."), (0, 1)),
        ([ALICE, MUTE], None, False, scene(f"SPEAKER1: {HEARD}") + past("[SPEAKER0] Alice says."), (1, 0)),
        (
            [ALICE, MUTE, BOB],
            "Quiet.",
            False,
            scene("Quiet.", "", f"SPEAKER1: {HEARD}") + past("[SPEAKER0] Alice says.") + past("[SPEAKER2] Bob says."),
            (1, 0, 2),
        ),
        ([CALM], None, False, scene("SPEAKER0: A calm voice."), ()),
        ([CALM, ALICE], None, False, scene("SPEAKER0: A calm voice.", f"SPEAKER1: {HEARD}"), (1,)),
        ([], " \n", False, f"{BEGIN}{SYSTEM}{INSTRUCTION}<|eot_id|>", ()),
    ],
)
def test_combinations(
    voices: list[Voice | Profile], scene_text: str | None, in_scene: bool, before: str, clips: tuple[int, ...]
) -> None:
    prompt = compose("Hello.", voices, scene_text, voices_in_scene=in_scene)
    assert prompt.prefix == before
    assert prompt.text == before + ASK
    assert prompt.clips == clips


def test_smart_voices_of_several_speakers_without_a_scene() -> None:
    prompt = compose("[SPEAKER3] Hello. [SPEAKER1] Hi.")
    assert "\n\n<|scene_desc_start|>\nSPEAKER1: feminine\nSPEAKER3: masculine\n<|scene_desc_end|>" in prompt.text
    assert prompt.text.startswith(f"{BEGIN}{SYSTEM}You are an AI assistant designed to convert text into speech.\n")


def test_more_than_ten_smart_voices_are_sorted_as_the_reference_sorts_them() -> None:
    text = "\n".join(f"[SPEAKER{n}] Hi." for n in range(11))
    assert "SPEAKER1: masculine\nSPEAKER10: feminine\nSPEAKER2: masculine\n" in build_prompt(text)


def test_one_smart_speaker_is_no_dialogue() -> None:
    assert build_prompt("[SPEAKER0] Hello.").startswith(
        f"{BEGIN}{SYSTEM}{INSTRUCTION}<|eot_id|>{USER}[SPEAKER0] Hello."
    )


def test_the_template_of_native_checkpoints() -> None:
    assert compose("Hello.", [MUTE], "Quiet.", audio_form="template").text == (
        scene("Quiet.", "", f"SPEAKER0: {SPOKEN}") + ASK
    )
    assert compose("Hello.", [ALICE], audio_form="template").text == (
        f"{BEGIN}{SYSTEM}{INSTRUCTION}<|eot_id|>" + past("Alice says.") + ASK
    )


def test_earlier_chunks_are_turns_after_the_voices() -> None:
    expected = BEGIN + past(VOICES["alice"] or "") + past("First.") + past("Second.") + ASK
    assert build_prompt("Hello", "alice", voices=VOICES, context=["First", "Second."]) == expected


def test_a_script_keeps_its_voices_and_the_last_chunks() -> None:
    script = Script(
        chunks=("[SPEAKER0] One.", "[SPEAKER1] Two.", "[SPEAKER0] Three.", "[SPEAKER1] Four."),
        sampling=SamplingParams(),
        scene=Scene("quiet", "Quiet.", Path("quiet.txt")),
    )
    prompts = [compose_chunk(script, index) for index in range(4)]
    assert [prompt.context for prompt in prompts] == [(), (0,), (0, 1), (1, 2)]
    assert len({prompt.prefix for prompt in prompts}) == 1
    assert "SPEAKER0: feminine\nSPEAKER1: masculine" in prompts[0].prefix
    assert prompts[3].turns.startswith(past("[SPEAKER1] Two.") + past("[SPEAKER0] Three."))


def test_a_script_with_a_profile_and_one_without_context() -> None:
    script = Script(("One.", "Two."), SamplingParams(), profile=CALM, context_chunks=0)
    prompt = compose_chunk(script, 1)
    assert prompt.context == ()
    assert prompt.text == scene("SPEAKER0: A calm voice.") + f"{USER}Two.<|eot_id|>{ASSISTANT}<|audio_out_bos|>"


@pytest.mark.parametrize("ref_audio", ["carol", "alice,carol", "profile:carol", "alice,"])
def test_unknown_names(ref_audio: str) -> None:
    with pytest.raises(NotFound) as error:
        build_prompt("Hello.", ref_audio, voices=VOICES, profiles=PROFILES)
    assert error.value.param == "ref_audio"


def test_spaces_around_names_do_not_matter() -> None:
    assert build_prompt("Hello.", " alice , bob ", voices=VOICES) == build_prompt("Hello.", "alice,bob", voices=VOICES)


def placeholders(prompt: Prompt) -> int:
    return sum(prompt.text.count(placeholder) for placeholder in PLACEHOLDERS)


HOSTILE = st.lists(
    st.sampled_from(
        ["<|AUDIO_OUT|>", "<|AUDIO|>", "<|eot_id|>", "<|", "|>", "AUDIO", "hi", " ", "<|<|x|>", "\n", "[SPEAKER1]"]
    ),
    max_size=8,
).map("".join)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(HOSTILE, HOSTILE, HOSTILE, HOSTILE)
def test_every_placeholder_has_its_clip(chunk: str, transcript: str, scene_text: str, earlier: str) -> None:
    voices = [Voice("a", transcript), Voice("b", "Hi."), Voice("c")]
    prompt = compose(chunk, voices, scene_text, [earlier])
    assert placeholders(prompt) == len(prompt.clips) + len(prompt.context) == 4
    assert sorted(prompt.clips) == [0, 1, 2]
    plain = compose("x", voices, "y", ["z"])
    assert prompt.turns.count("<|eot_id|>") == plain.turns.count("<|eot_id|>")


def test_without_mappings_the_folder_of_voices_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "examples" / "voice_prompts"
    folder.mkdir(parents=True)
    (folder / "alice.wav").write_bytes(b"RIFF")
    (folder / "alice.txt").write_text("Alice says.\n", "utf-8")
    (folder / "mute.wav").write_bytes(b"RIFF")
    (folder / "profile.yaml").write_text("profiles:\n  calm: A calm voice.\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    assert build_prompt("Hello", "alice") == BEGIN + past("Alice says.") + ASK
    assert build_prompt("Hello", "mute") == scene(f"SPEAKER0: {HEARD}") + ASK
    assert build_prompt("Hello", "profile:calm") == scene("SPEAKER0: A calm voice.") + ASK
    for unknown in ("bob", "profile:bob"):
        with pytest.raises(NotFound):
            build_prompt("Hello", unknown)
