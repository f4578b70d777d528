"""Spelling the model was trained on: the text rules of the reference implementation.

The rules are those of boson_multimodal (`examples/generation.py`), equal to the letter on golden/prompts.json. They
are few on purpose: numbers, units and abbreviations are left to the model. Nothing here depends on the language.

Beyond the reference: tags in other spellings (`[speaker 0]`) become canonical, white space inside a sound tag does
not matter, and a text with nothing in it stays empty instead of becoming a full stop.
"""

from __future__ import annotations

import re

from higgs_server.text.dialogue import canonical_tags

_HALF_WIDTH = str.maketrans(
    {
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
    }
    # Brackets are dropped; the space keeps the words on both sides apart.
    | dict.fromkeys("()（）", " ")
)

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
    text = text.translate(_HALF_WIDTH)
    text = text.replace("°F", " degrees Fahrenheit").replace("°C", " degrees Celsius")
    lines = (" ".join(line.split()) for line in text.split("\n"))
    text = "\n".join(line for line in lines if line)
    text = _SOUND.sub(lambda match: _SOUNDS[match[0]], canonical_tags(text))
    if text and not text.endswith(_ENDINGS):
        text += "."
    return text
