"""Chinese text to the phonemes Kokoro learned: IPA with an arrow for each tone.

The norm is `misaki.zh.ZHG2P()` 0.9.4 (the one of Kokoro v1.0): readings from pypinyin, tones as they stand in the
dictionary (no sandhi rules: the model learned them), and a space between words. Knows no English; its punctuation is
half-width.
"""

from __future__ import annotations

import re
from functools import cache

from pypinyin import Style, lazy_pinyin
from pypinyin.contrib.tone_convert import to_finals, to_initials
from pypinyin.seg.mmseg import seg

from higgs_server.backends.embedded.chinese_numbers import write_out_numbers

_INITIALS = {
    "b": "p", "p": "pʰ", "m": "m", "f": "f", "d": "t", "t": "tʰ", "n": "n", "l": "l", "g": "k", "k": "kʰ", "h": "x",
    "j": "ʨ", "q": "ʨʰ", "x": "ɕ", "zh": "ꭧ", "ch": "ꭧʰ", "sh": "ʂ", "r": "ɻ", "z": "ʦ", "c": "ʦʰ", "s": "s",
}  # fmt: skip
_FINALS = {
    "a": "a0", "ai": "ai0", "an": "a0n", "ang": "a0ŋ", "ao": "au0", "e": "ɤ0", "ei": "ei0", "en": "ə0n", "eng": "ə0ŋ",
    "i": "i0", "ia": "ja0", "ian": "jɛ0n", "iang": "ja0ŋ", "iao": "jau0", "ie": "je0", "in": "i0n", "ing": "i0ŋ",
    "iong": "jʊ0ŋ", "iou": "jou0", "o": "wo0", "ong": "ʊ0ŋ", "ou": "ou0", "u": "u0", "ua": "wa0", "uai": "wai0",
    "uan": "wa0n", "uang": "wa0ŋ", "uei": "wei0", "uen": "wə0n", "ueng": "wə0ŋ", "uo": "wo0",
    "v": "y0", "ve": "ɥe0", "van": "ɥɛ0n", "vn": "y0n", "-i": "ɨ0",
}  # fmt: skip
"""Finals as pypinyin's strict style writes them (`v` for ü), and `-i` as in zi and zhi; 0 is where the tone goes."""
_BEFORE_APICAL = frozenset(("zh", "ch", "sh", "r", "z", "c", "s"))
_WHOLE = {"er": "ɚ0", "o": "ɔ0", "ê": "ɛ0", "m": "m0", "n": "n0", "ng": "ŋ0", "hm": "hm0", "hng": "hŋ0"}
"""Syllables that are not an initial and a final."""
_TONES = {"1": "→", "2": "↗", "3": "↓", "4": "↘", "5": ""}

_HAN = re.compile(r"[\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]{1,200}")
"""A run of Chinese, bounded because pypinyin's time grows with its square."""


def phonemize_chinese(text: str) -> str:
    """The phonemes of a Chinese text; what is not Chinese, once numbers are written out, stays as it is.

    A character that no dictionary gives a reading for is left out.
    """
    return _HAN.sub(lambda run: _phonemes(run[0]), write_out_numbers(text))


def _phonemes(characters: str) -> str:
    # pypinyin's words are shorter than those Kokoro learned from (jieba's), but sound nearer to them than no spaces.
    return " ".join(filter(None, map(_word_phonemes, seg.cut(characters))))


def _word_phonemes(word: str) -> str:
    syllables = lazy_pinyin(word, style=Style.TONE3, neutral_tone_with_five=True, errors="ignore")
    return "".join(map(syllable_phonemes, syllables))


@cache
def syllable_phonemes(pinyin: str) -> str:
    """`zhong1` -> `ꭧʊ→ŋ`; "" for what is no syllable."""
    syllable, tone = pinyin[:-1], _TONES.get(pinyin[-1:])
    if tone is None:
        return ""
    if syllable in _WHOLE:
        return _WHOLE[syllable].replace("0", tone)
    initial, final = to_initials(syllable, strict=True), to_finals(syllable, strict=True)
    if final == "i" and initial in _BEFORE_APICAL:
        final = "-i"
    return _INITIALS.get(initial, "") + _FINALS.get(final, "").replace("0", tone)
