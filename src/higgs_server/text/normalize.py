"""Spelling the model was trained on: the text rules of the reference implementation.

The rules are those of boson_multimodal (`examples/generation.py`), equal to the letter on golden/prompts.json. They
are few on purpose: numbers, units and abbreviations are left to the model. Nothing here depends on the language.

Beyond the reference: tags in other spellings (`[speaker 0]`) become canonical, white space inside a sound tag does
not matter, and a text with nothing in it stays empty instead of becoming a full stop.
"""

from __future__ import annotations

import re

from higgs_server.text.dialogue import canonical_tags
from higgs_server.text.traced import Traced

_SPELLINGS = {
    "，": ", ",
    "。": ".",
    "：": ":",
    "；": ";",
    "？": "?",
    "！": "!",
    "【": "[",
    "】": "]",
    "《": "<",
    "》": ">",
    "“": '"',
    "”": '"',
    "「": '"',
    "」": '"',
    "『": '"',
    "』": '"',
    "‘": "'",
    "’": "'",
    "、": ",",
    "—": "-",
    "…": "...",
    "·": ".",
    "°F": " degrees Fahrenheit",
    "°C": " degrees Celsius",
    # Brackets are dropped; the space keeps the words on both sides apart.
    **dict.fromkeys("()（）", " "),
}
_SPELLING = re.compile("|".join(map(re.escape, _SPELLINGS)))
_SPACE = re.compile(r"\s+")
_LAST = re.compile(r".\Z", re.DOTALL)

_SOUNDS = {
    "[laugh]": "<SE>[Laughter]</SE>",
    # Not <SE_s>: the reference writes it so, and the model knows what it was trained on.
    "[humming start]": "<SE>[Humming]</SE>",
    "[humming end]": "<SE_e>[Humming]</SE_e>",
    "[music]": "<SE>[Music]</SE>",
    "[music start]": "<SE_s>[Music]</SE_s>",
    "[music end]": "<SE_e>[Music]</SE_e>",
    "[sing start]": "<SE_s>[Singing]</SE_s>",
    "[sing end]": "<SE_e>[Singing]</SE_e>",
    "[applause]": "<SE>[Applause]</SE>",
    "[cheering]": "<SE>[Cheering]</SE>",
    "[cough]": "<SE>[Cough]</SE>",
}
_SOUND = re.compile("|".join(map(re.escape, _SOUNDS)))

# `</SE_s>` is missing in the reference too: a sound that starts at the very end gets its full stop.
_ENDINGS = (".", "!", "?", ",", ";", '"', "'", "</SE_e>", "</SE>")


def normalize(text: str) -> str:
    """Text as a user writes it -> text as the model reads it. Idempotent; never raises.

    Lines stay lines, blank ones go. Source: boson_multimodal 0.1.1, examples/generation.py, `main`.
    """
    return normalized(text).text


def normalized(text: str) -> Traced:
    """As `normalize`, and each character knows what it stands for in `text`."""
    traced = Traced.of(text).sub(_SPELLING, lambda match: _SPELLINGS[match[0]]).sub(_SPACE, _folded)
    traced = canonical_tags(traced).sub(_SOUND, lambda match: _SOUNDS[match[0]])
    if traced.text and not traced.text.endswith(_ENDINGS):
        traced = traced.sub(_LAST, lambda match: f"{match[0]}.")
    return traced


def _folded(space: re.Match[str]) -> str:
    if space.start() == 0 or space.end() == len(space.string):
        return ""
    return "\n" if "\n" in space[0] else " "
