"""Which part of a text is Chinese and which is not.

Decides by script alone: Chinese characters against all other letters. What stands between (numbers, units, punctuation,
symbols) goes with its neighbours. Knows no words, no grammar, and of all languages these two.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

Language = Literal["en", "zh"]

UNITS = {
    "km/h": "公里每小时", "m/s": "米每秒", "km²": "平方公里", "m²": "平方米", "m³": "立方米", "km2": "平方公里",
    "m2": "平方米", "m3": "立方米", "km": "公里", "cm": "厘米", "mm": "毫米", "nm": "纳米", "m": "米", "kg": "公斤",
    "mg": "毫克", "g": "克", "ml": "毫升", "mL": "毫升", "L": "升", "kWh": "千瓦时", "kW": "千瓦", "W": "瓦", "V": "伏",
    "kHz": "千赫兹", "MHz": "兆赫兹", "GHz": "吉赫兹", "Hz": "赫兹", "ms": "毫秒", "min": "分钟", "s": "秒",
    "h": "小时", "°C": "摄氏度", "°F": "华氏度", "degrees Celsius": "摄氏度", "degrees Fahrenheit": "华氏度",
}  # fmt: skip
"""Units written in Latin letters, with their Chinese names: after a number they belong to it, not to the English."""

_HAN = "\u2e80-\u2fdf\u3005\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
UNIT_PATTERN = "|".join(re.escape(unit) for unit in sorted(UNITS, key=len, reverse=True))
"""Matches a unit, the longest first."""

_TOKEN = re.compile(
    rf"(?P<zh>[{_HAN}]+)"
    rf"|(?P<unit>(?<=\d)\s?(?:{UNIT_PATTERN})(?![^\W\d_{_HAN}]))"
    rf"|(?P<en>[^\W\d_{_HAN}]+)"
    r"|(?P<neutral>.)",
    re.DOTALL,
)
_COUNTED = "年月日号点个位章节级次天岁人元块万亿千百度倍条件本台只张名分秒小周后前多"
_LAST_NUMBER = re.compile(r"(?P<number>[-+$¥￥€£]?\d[\d.,:/%~-]{0,40})(?P<space>\s*)$")
"""The number that ends what stands between English and Chinese, and the space that follows it."""
_OPENING = re.compile(r"[(\[{“‘《「『【（<]{1,8}$")


def split_languages(text: str, default: Language = "en") -> list[tuple[Language, str]]:
    """Cuts a text into its Chinese and its other parts; joined in order they are the text again.

    Numbers, dates, units, punctuation and symbols go with the part before them, at the start with the part after;
    alone they are `default`. A number after English but written to Chinese (`Python，3年`) is Chinese.
    """
    cuts: list[tuple[Language, int]] = []
    end = 0
    for match in _TOKEN.finditer(text):
        if match["neutral"] or match["unit"]:
            continue
        language: Language = "zh" if match["zh"] else "en"
        if not cuts:
            cuts.append((language, 0))
        elif cuts[-1][0] != language:
            cuts.append((language, end + _cut_between(text[end : match.start()], language, match[0])))
        end = match.end()
    if not text:
        return []
    if not cuts:
        cuts.append((default, 0))
    ends = [start for _, start in cuts[1:]] + [len(text)]
    return [(language, text[start:stop]) for (language, start), stop in zip(cuts, ends, strict=True)]


def _cut_between(between: str, after: Language, following: str) -> int:
    """How much of `between`, which stands between two languages, belongs to the part before."""
    if after == "zh" and (found := _LAST_NUMBER.search(between)):
        before = between[: found.start()]
        separated = before != "" and before[-1] not in "-_"
        if separated and (following[0] in _COUNTED or not (found["space"] or before.isspace())):
            return len(before)
    opening = _OPENING.search(between)
    return opening.start() if opening else len(between)


def dominant_language(text: str) -> Language:
    """The language most of a text is in, a Chinese character counted like an English word; without either, "en"."""
    counts = {"en": 0, "zh": 0}
    for match in _TOKEN.finditer(text):
        if match["zh"]:
            counts["zh"] += len(match["zh"])
        elif match["en"]:
            counts["en"] += 1
    return "zh" if counts["zh"] and counts["zh"] >= counts["en"] else "en"


def written_language(text: str) -> Language | None:
    """The language that a text is written in, by its letters; None where they are of neither script."""
    letters = [unicodedata.name(letter, "").split(" ")[0] for letter in text if letter.isalpha()]
    if letters and all(script in ("LATIN", "CJK") for script in letters):
        return dominant_language(text)
    return None
