"""Text to the symbols Kokoro reads: Chinese and English, mixed as they come, and cut to what one model call takes.

Knows no voices and no audio. Works on a sentence; cutting a text into sentences is not done here.
"""

from __future__ import annotations

import json
import re
import unicodedata
from functools import cache, lru_cache
from importlib.resources import files

from higgs_server.backends.embedded.chinese import phonemize_chinese
from higgs_server.backends.embedded.english import phonemize_english
from higgs_server.text.language import Language, split_languages

MAX_TOKENS = 508
"""Symbols one model call takes: a voice pack has 510 rows, and the sentence is framed by two zeros."""

_SOUND_EVENT = re.compile(r"<(SE(?:_[A-Za-z]+)?)>[^<]*</\1>|</?SE(?:_[A-Za-z]+)?>")
"""`<SE>[Laughter]</SE>`: an instruction to Higgs; this voice cannot laugh and must not read it out. Its note in
`/info` says so."""

_PUNCTUATION = str.maketrans(
    {
        "。": ". ", "．": ". ", "｡": ". ", "，": ", ", "、": ", ", "､": ", ", "！": "! ", "？": "? ", "；": "; ",
        "：": ":", "‘": "'", "’": "'", "«": " “", "»": "” ", "《": " “", "》": "” ", "〈": " “", "〉": "” ", "「": " “",
        "」": "” ", "『": " “", "』": "” ", "【": " “", "】": "” ", "（": " (", "）": ") ", "―": "—", "–": "–",
        "·": " ", "・": " ", "～": "~", "〜": "~", "⋯": "…",
    }
)  # fmt: skip
_DOTS = re.compile(r"[.。]{2,}")
_DASH = re.compile(r"-{2,}|(?<=[^\W\d_] )-(?= [^\W\d_])")
"""What normalisation makes of a dash that sets words apart; without spaces around it, it looks like `well-known`."""
_KEPT = frozenset("²³½¼¾™…")
"""Compatibility characters that say more than their decomposition."""


def phonemize(text: str, *, british: bool = False, default: Language = "en") -> str:
    """One sentence's phonemes, every symbol from `vocabulary()`; "" where there is nothing to say.

    `british` chooses how English is read, `default` how a text without letters (`2024`) is.
    """
    parts = [
        phonemize_chinese(part) if language == "zh" else phonemize_english(part, british=british)
        for language, part in split_languages(_plain(text), default)
    ]
    phonemes = _tidy(" ".join(parts))
    return phonemes if any(character.isalpha() for character in phonemes) else ""


def to_ids(phonemes: str) -> list[int]:
    """Token ids [n], a symbol each; without the zeros that frame a model call."""
    symbols = vocabulary()
    return [symbols[symbol] for symbol in phonemes if symbol in symbols]


def split_phonemes(phonemes: str, limit: int = MAX_TOKENS) -> list[str]:
    """Pieces of at most `limit` symbols which joined are `phonemes` again.

    Cut after a sentence where there is one in the later three quarters of what fits, else after a clause, else after
    a word, else anywhere.
    """
    pieces = []
    while len(phonemes) > limit:
        cut = next(filter(None, (_last_cut(phonemes, limit, marks) for marks in (".!?…", ",;:—", " "))), limit)
        pieces.append(phonemes[:cut])
        phonemes = phonemes[cut:]
    return [*pieces, phonemes] if phonemes else pieces


def _last_cut(phonemes: str, limit: int, marks: str) -> int:
    """Where the last of `marks` within `limit` ends, the space after it included; 0 if there is none late enough."""
    last = max(phonemes.rfind(mark, limit // 4, limit - 1) for mark in marks) + 1
    return last + (phonemes[last] == " ") if last else 0


@cache
def vocabulary() -> dict[str, int]:
    """Kokoro's symbols and their ids."""
    symbols: dict[str, int] = json.loads(files("hibari").joinpath("assets/vocab.json").read_text("utf-8"))
    return symbols


def _plain(text: str) -> str:
    """Half-width characters, ASCII digits, one kind of each punctuation mark, nothing unspeakable."""
    text = _DOTS.sub("…", _SOUND_EVENT.sub(" ", text))
    text = unicodedata.normalize("NFC", text).translate(_PUNCTUATION)
    return _DASH.sub("—", "".join(map(_plain_character, text)))


@lru_cache(maxsize=4096)
def _plain_character(character: str) -> str:
    if character.isascii() or character in _KEPT:
        return character
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    if unicodedata.category(character) in ("Cf", "Cs", "Co", "Cn"):
        return ""
    return unicodedata.normalize("NFKC", character)


def _tidy(phonemes: str) -> str:
    """Only symbols of the vocabulary, spaced as in running text."""
    symbols = vocabulary()
    phonemes = "".join(symbol for symbol in phonemes if symbol in symbols or symbol.isspace())
    phonemes = re.sub(r"\(\s*\)", "", phonemes)
    phonemes = re.sub(r"([,.;:!?…—])(?:\s*\1)+", r"\1", phonemes)
    phonemes = re.sub(r"\s+", " ", phonemes)
    phonemes = re.sub(r" (?=[,.;:!?…)”])", "", phonemes)
    phonemes = re.sub(r"(?<=[(“]) ", "", phonemes)
    return re.sub(r"([,.;:!?…])(?=[^\W\d_]|[“(])", r"\1 ", phonemes).strip()
