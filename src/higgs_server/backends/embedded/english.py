"""Everything that is not Chinese to Kokoro's phonemes, read as English by hibari's grapheme-to-phoneme part.

Knows no Chinese. Other alphabets are written in Latin letters first (Cyrillic, Greek, kana, hangul), so that a name or
a word among English is heard; scripts without such a spelling are left out.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from functools import cache
from re import Match
from threading import Lock
from typing import Any

from higgs_server.backends.embedded.english_numbers import respell_numbers

_log = logging.getLogger(__name__)

_LONGEST_WORD = 24
"""Letters that hibari's network for unknown words reads; it drops the rest of a longer word."""
_LONGEST_NUMBER = 36
"""Digits that hibari has words for; it fails on more."""

_LETTERS = {
    "а": "a", "б": "b", "в": "v", "г": "g", "д": "d", "е": "e", "ё": "yo", "ж": "zh", "з": "z", "и": "i", "й": "y",
    "к": "k", "л": "l", "м": "m", "н": "n", "о": "o", "п": "p", "р": "r", "с": "s", "т": "t", "у": "u", "ф": "f",
    "х": "kh", "ц": "ts", "ч": "ch", "ш": "sh", "щ": "shch", "ъ": "", "ы": "y", "ь": "", "э": "e", "ю": "yu",
    "я": "ya", "і": "i", "ї": "yi", "є": "ye", "ґ": "g",
    "α": "a", "β": "v", "γ": "g", "δ": "d", "ε": "e", "ζ": "z", "η": "i", "θ": "th", "ι": "i", "κ": "k", "λ": "l",
    "μ": "m", "ν": "n", "ξ": "x", "ο": "o", "π": "p", "ρ": "r", "σ": "s", "ς": "s", "τ": "t", "υ": "y", "φ": "f",
    "χ": "kh", "ψ": "ps", "ω": "o",
}  # fmt: skip
"""Cyrillic and Greek letters as English writes them."""
_SYLLABLE_NAME = re.compile(r"(?:HIRAGANA LETTER|KATAKANA LETTER|HANGUL SYLLABLE) (SMALL )?([A-Z]+)")
"""Unicode names these after their sound."""
_KANA_IN_ENGLISH = {"si": "shi", "ti": "chi", "tu": "tsu", "hu": "fu", "zi": "ji"}

_SYMBOLS = {
    "≈": " about ", "≠": " is not equal to ", "≤": " is at most ", "≥": " is at least ", "√": " square root of ",
    "∞": " infinity ", "‰": " per mille ", "−": "-",
}  # fmt: skip
"""Symbols that hibari is silent about."""

_FOREIGN_WORD = re.compile(r"[Ͱ-ԯ぀-ヿ가-힣İ]{2,}|[Ѐ-ԯ぀-ヿ가-힣İ]")
"""A single Greek letter is a symbol (π), which hibari names."""
_LONG_WORD = re.compile(rf"[^\W\d_]{{{_LONGEST_WORD + 1},}}")
_LONG_NUMBER = re.compile(rf"\d{{{_LONGEST_NUMBER + 1},}}")
_CAPITALS = re.compile(r"(?<![\w'’.-])[A-Z]{2,}(?:['’][A-Z]{1,2})?(?![\w'’-]|\.[A-Za-z])")
_SHOUTED = 3
"""Words in capitals, and none in small letters, from which on a text is shouted and not full of abbreviations."""
_LONGEST_ABBREVIATION = 3
"""Letters that are spelled although they make a word too (`US`, `IT`), unless they are shouted."""
_LETTER_A = re.compile(r"[\W\d_]*A[\W\d_]*")
"""As in `A股`, once the Chinese is taken away."""
_BRACKETS = str.maketrans("[]{}", "()()")
"""hibari reads words in other brackets letter by letter, and `[word](/phonemes/)` lets a text set its own phonemes."""
_LONG_RUN = re.compile(r"\S{40}(?=\S)")
"""Without a space in it; hibari's time grows with the cube of such a run."""
_WORD = re.compile(r"\S+")


def phonemize_english(text: str, *, british: bool) -> str:
    """The phonemes of a text, with its punctuation. Raises for no text; threads may call it at once."""
    reader = _reader(british)
    text = _words_in_small_letters(_readable(text), reader.lexicon)

    def word_alone(word: Match[str]) -> str:
        try:
            return str(reader(word[0]))
        except Exception:
            return ""

    try:
        return str(reader(text))
    except Exception:
        # hibari's rules for numbers trip over strings nobody writes (`①你`): what can be said still is.
        _log.debug("hibari failed on a text; reading it word by word", exc_info=True)
        return _WORD.sub(word_alone, text)


def _readable(text: str) -> str:
    """The text without what hibari would lose, fail on, or take for an instruction."""
    if _LETTER_A.fullmatch(text):
        return text.replace("A", "eh")  # it would be read as the article
    text = _FOREIGN_WORD.sub(lambda word: _in_latin_letters(word[0]), text.translate(_BRACKETS))
    text = respell_numbers("".join(_SYMBOLS.get(character, character) for character in text))
    text = _LONG_WORD.sub(lambda word: _in_pieces(word[0], _LONGEST_WORD), text)
    text = _LONG_NUMBER.sub(lambda number: _in_pieces(number[0], 1), text)
    return _LONG_RUN.sub(r"\g<0> ", text)


def _words_in_small_letters(text: str, lexicon: Any) -> str:
    """Words that are written in capitals for emphasis: hibari takes many of them for names and spells them out."""
    shouted = text.isupper() and len(_CAPITALS.findall(text)) >= _SHOUTED

    def small(word: Match[str]) -> str:
        lower = word[0].lower().replace("’", "'")
        if len(lower) <= _LONGEST_ABBREVIATION and not shouted:
            return word[0]
        entry = lexicon.golds.get(lower) or lexicon.silvers.get(lower)
        return lower if entry or any(stem(lower, None, None, None)[0] for stem in stems) else word[0]

    stems = (lexicon.stem_s, lexicon.stem_ed, lexicon.stem_ing)
    return _CAPITALS.sub(small, text)


def _in_pieces(word: str, length: int) -> str:
    return " ".join(word[start : start + length] for start in range(0, len(word), length))


def _in_latin_letters(word: str) -> str:
    latin = ""
    for character in word:
        letter = character.lower()
        if letter not in _LETTERS:
            letter = unicodedata.normalize("NFD", letter)[0]
        named = _SYLLABLE_NAME.match(unicodedata.name(character, ""))
        if letter in _LETTERS:
            spelled = _LETTERS[letter]
            latin += spelled.capitalize() if character.isupper() else spelled
        elif named is None:
            latin += letter
        elif named[1] is None:
            latin += _KANA_IN_ENGLISH.get(named[2].lower(), named[2].lower())
        elif named[2] != "TU":  # a small tu only lengthens; other small kana colour the syllable before: ki + ya = kya
            latin = latin.removesuffix("i") + named[2].lower()
    return latin


_loading = Lock()


def _reader(british: bool) -> Any:
    with _loading:
        return _load_reader(british)


@cache
def _load_reader(british: bool) -> Any:
    """hibari's reader of one variant, a second or two to load. It keeps no state between calls."""
    from hibari.g2p import G2P

    reader = G2P(british=british)
    _ = reader.oov  # loads its network (one thread), which threads would otherwise race to do
    return reader
