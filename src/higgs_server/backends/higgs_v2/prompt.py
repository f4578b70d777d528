"""What the model reads before it speaks: one string, with a placeholder wherever a clip's codes go.

Knows no tokenizer, no codes and no weights. The strings are those of the reference implementation (boson_multimodal
0.1.1, `examples/generation.py` and `dataset/chatml_dataset.py`); golden/prompts.json holds eight of them.

The conversation, in this order: a system message (what to do; the scene block with descriptions and clips of the
speakers), the voices as past turns (the user said the transcript, the assistant answered with the clip), earlier
chunks of a long text as further turns, and the chunk to be spoken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from higgs_server.library.profiles import PROFILE_PREFIX, ProfileLibrary
from higgs_server.library.voices import VoiceLibrary
from higgs_server.text.dialogue import speakers, tag
from higgs_server.text.normalize import normalize
from higgs_server.types import NotFound, Profile, Script, Voice

AudioForm = Literal["reference", "template"]
"""Who wrote the rules: the reference implementation (checkpoints in the original layout), or the chat template that
native checkpoints ship. The template knows only the tokens of spoken audio, and always has a system message."""

AUDIO_IN = "<|AUDIO|>"
AUDIO_OUT = "<|AUDIO_OUT|>"
PLACEHOLDERS = (AUDIO_IN, AUDIO_OUT)
"""Each stands for one clip's rows."""

_SPOKEN = f"<|audio_out_bos|>{AUDIO_OUT}<|audio_eos|>"
_HEARD: Mapping[AudioForm, str] = {"reference": f"<|audio_bos|>{AUDIO_IN}<|audio_eos|>", "template": _SPOKEN}

_INSTRUCTION = "Generate audio following instruction."
_INSTRUCTION_SPEAKERS = """\
You are an AI assistant designed to convert text into speech.
If the user's message includes a [SPEAKER*] tag, do not read out the tag and generate speech for the following text, \
using the specified voice.
If no speaker tag is present, select a suitable voice on your own."""

_SHIPPED = Path("examples/voice_prompts")
T = TypeVar("T")

_CONTROL_TOKEN = re.compile(r"<\|\w+\|>")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt and what fills its placeholders, in the order they stand in the text.

    First `clips` (indices of voices), all of them in `prefix`; then `context` (indices of earlier chunks), whose
    codes the model has made itself. `prefix` is the same for all chunks of an utterance, and for every request with
    the same voices, scene and kind of dialogue: its keys and values are worth keeping.
    """

    prefix: str
    turns: str
    clips: tuple[int, ...] = ()
    context: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """The whole prompt; what follows it are the rows of the chunk."""
        return self.prefix + self.turns


def build_prompt(
    text: str,
    ref_audio: str | None = None,
    scene: str | None = None,
    *,
    ref_audio_in_system_message: bool = False,
    voices: Mapping[str, str | None] | None = None,
    profiles: Mapping[str, str] | None = None,
    context: Sequence[str] = (),
    audio_form: AudioForm = "reference",
) -> str:
    """The prompt for `text` as a string, from names instead of resolved voices.

    `ref_audio` is a voice's name, `a,b` for SPEAKER0 and SPEAKER1, `profile:NAME`, any mixture of them, or None for
    voices of the model's own choice. `voices` gives each name its clip's transcript (None where there is none),
    `profiles` each profile's description; without them the shipped voices and profiles count. `scene` is the
    description itself. `context` are the chunks spoken before. All text is normalised here. Raises NotFound for an
    unknown name.
    """
    names = [name.strip() for name in ref_audio.split(",")] if ref_audio else []
    prompt = compose(
        normalize(text),
        [_resolve(name, voices, profiles) for name in names],
        scene,
        [normalize(chunk) for chunk in context],
        voices_in_scene=ref_audio_in_system_message,
        audio_form=audio_form,
    )
    return prompt.text


def compose_chunk(script: Script, index: int, *, audio_form: AudioForm = "reference") -> Prompt:
    """The prompt for `script.chunks[index]`, with the last `script.context_chunks` chunks before it as context."""
    first = max(0, index - script.context_chunks)
    prompt = compose(
        script.chunks[index],
        [script.profile] if script.profile else script.voices,
        script.scene.content if script.scene else None,
        script.chunks[first:index],
        cast=speakers(script.text),
        audio_form=audio_form,
    )
    return replace(prompt, context=tuple(range(first, index)))


def compose(
    chunk: str,
    voices: Sequence[Voice | Profile] = (),
    scene: str | None = None,
    context: Sequence[str] = (),
    *,
    cast: Sequence[int] | None = None,
    voices_in_scene: bool = False,
    audio_form: AudioForm = "reference",
) -> Prompt:
    """The prompt for one chunk of normalised text, `context` being the chunks before it.

    `voices[n]` speaks for SPEAKERn. `cast` are the speakers of the whole text where that is more than chunk and
    context. Clips stand in the scene block if `voices_in_scene` says so or one of the voices is a profile; a clip
    without a transcript stands there in any case.
    """
    in_scene = voices_in_scene or any(isinstance(voice, Profile) for voice in voices)
    scene_lines: list[str] = []
    scene_clips: list[int] = []
    past_turns: list[str] = []
    past_clips: list[int] = []
    for number, voice in enumerate(voices):
        transcript = _plain(voice.transcript or "") if isinstance(voice, Voice) else ""
        if isinstance(voice, Profile):
            scene_lines.append(f"SPEAKER{number}: {_plain(voice.description)}")
        elif in_scene or not transcript:
            scene_lines.append(f"SPEAKER{number}: {_HEARD[audio_form]}")
            scene_clips.append(number)
        else:
            past_turns.append(_exchange(f"{tag(number)} {transcript}" if len(voices) > 1 else transcript))
            past_clips.append(number)

    instruction = _INSTRUCTION
    if not voices:
        cast = cast if cast is not None else speakers("\n".join([*context, chunk]))
        if len(cast) > 1:
            instruction = _INSTRUCTION_SPEAKERS
            # The reference sorts the tags as strings: SPEAKER10 stands before SPEAKER2.
            scene_lines = [
                f"SPEAKER{speaker}: {'masculine' if place % 2 else 'feminine'}"
                for place, speaker in enumerate(sorted(cast, key=str))
            ]
    scene_block = _scene_block(_plain(scene or ""), scene_lines)
    # A cloned voice without a scene has no system message in the reference; the template insists on one.
    needs_system = bool(scene_block) or not voices or audio_form == "template"
    system = _message("system", "\n\n".join(filter(None, [instruction, scene_block]))) if needs_system else ""
    return Prompt(
        prefix="".join(["<|begin_of_text|>", system, *past_turns]),
        turns="".join(map(_exchange, map(_plain, context)))
        + _message("user", _plain(chunk))
        + _opening("assistant")
        + "<|audio_out_bos|>",
        clips=(*scene_clips, *past_clips),
        context=tuple(range(len(context))),
    )


def _resolve(name: str, voices: Mapping[str, str | None] | None, profiles: Mapping[str, str] | None) -> Voice | Profile:
    if name.startswith(PROFILE_PREFIX):
        name = name.removeprefix(PROFILE_PREFIX).strip()
        if profiles is None:
            return ProfileLibrary(_SHIPPED).get(name)
        return Profile(name, _look_up(name, profiles))
    if voices is None:
        return VoiceLibrary(_SHIPPED).get(name)
    return Voice(name, _look_up(name, voices))


def _look_up(name: str, known: Mapping[str, T]) -> T:
    if name not in known:
        existing = ", ".join(sorted(known))
        raise NotFound(
            f"{name!r} is unknown here. Known: {existing or 'none'}.",
            f"未知的名称 {name!r}。可用：{existing or '无'}。",
            param="ref_audio",
        )
    return known[name]


def _scene_block(scene: str, lines: Sequence[str]) -> str:
    inside = "\n\n".join(filter(None, [scene, "\n".join(lines)]))
    return f"<|scene_desc_start|>\n{inside}\n<|scene_desc_end|>" if inside else ""


def _exchange(words: str) -> str:
    """A turn of the past: the user's words and the clip that answered them."""
    return _message("user", words) + _message("assistant", _SPOKEN)


def _message(role: str, content: str) -> str:
    return f"{_opening(role)}{content}<|eot_id|>"


def _opening(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


def _plain(words: str) -> str:
    """Someone's words without the model's control tokens: they would end the turn or ask for a clip that is not there.

    Each becomes a space, so that what stood around it cannot make a new one.
    """
    return _CONTROL_TOKEN.sub(" ", words).strip()
