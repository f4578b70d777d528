"""Numbers in an English text, respelled where hibari misreads them: telephone numbers, codes, ranges, money.

Text in, text out; knows nothing of phonemes. What hibari reads right (dates, times, units, decimals) stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from re import Match


def respell_numbers(text: str) -> str:
    """The text with those numbers in hibari's spelling; what is no number stays as it is."""
    for pattern, spelling in _RULES:
        text = pattern.sub(spelling, text)
    return text


def _digits(match: Match[str]) -> str:
    """Digit by digit, with a pause between groups."""
    return ", ".join(map(" ".join, re.findall(r"\d+", match[0])))


_A = re.ASCII
_START = r"(?<![\w.,:/$£€-])"
"""Where a number begins that is not the tail of another one or of a name."""
_END = r"(?![\w-]|[.,:/]\d)"
_NUMBER = r"\d+(?:[.,:]\d+)*"
_UNIT = r"(?:%|°[CF]?| degrees (?:Celsius|Fahrenheit)|\s?[AaPp]\.?[Mm]\b\.?|[A-Za-z]{1,2})"
_MEASURE = rf"(?:{_NUMBER}{_UNIT}|\d+(?:[.,:]\d+)+)"
_TO = r"\s?[-–~]\s?"
_UPPER_END = rf"(?=[$£€]?{_NUMBER}{_UNIT}?(?![\w-]))"
_MAGNITUDE = r"(?:[kKmMbB]\b|thousand|million|billion|trillion)"
_TELEPHONE = (
    r"(?:(?<!\w\+)(?<=\+)\d{1,3}(?:(?:[- ]\d{1,11}){2,6}|[- ]\d{5,11})"  # +44 20 7946 0958
    r"|0\d(?:[- ]\d{3,4}){2}|0\d{2,4}(?:[- ]\d{3,8}){1,2}"
    r"|(?:1[-. ])?\d{3}[-. ]\d{3}[-. ]\d{4}|\d{3}-\d{4}(?<!00))"  # 500-1000 is a range
)

_RULES: list[tuple[re.Pattern[str], str | Callable[[Match[str]], str]]] = [
    (re.compile(rf"{_START}{_TELEPHONE}{_END}", _A), _digits),
    # Codes: what starts with zeros, is too long to follow unless it is round, or is called one.
    (re.compile(rf"{_START}(?:0\d{{2,}}|\d{{10,}}(?<!000000)){_END}", _A), _digits),
    (
        re.compile(rf"\b((?:[Cc]ode(?! (?:1[89]|20)\d\d\b)|PIN|ZIP|OTP|[Pp]assword)(?: is|:)? )(\d{{4,}}){_END}", _A),
        lambda m: m[1] + " ".join(m[2]),
    ),
    # Versions and addresses of computers, unlike dates, and `2.0`: hibari says no dots, or nothing after the first.
    (
        re.compile(r"(?<![\w.,:/$£€-])(?!\d\d?\.\d\d?\.\d{4})[vV]?\d+(?:(?:\.\d++){2,}+|\.0)(?!\w)", _A),
        lambda m: m[0].replace(".", " point "),
    ),
    (re.compile(r"(?<![\w./])(?:24/7|10/10|20/20|50[/-]50)(?![\w/-])", _A), lambda m: re.sub(r"\D", " ", m[0])),
    (re.compile(r"(?<!\d)(\d{1,3})(?: (?=[1-9]/[2-9](?![\w/]))|\s?(?=[½¼¾]))", _A), r"\1 and "),
    (re.compile(r"(?<![\w.,'])([3-8])'(1[01]|\d)(?:\"|\b)", _A), r"\1 foot \2"),
    (re.compile(r"(?<=\d)\s?-\s?(?=\d+(?:\.\d+)?\s?=)", _A), " minus "),
    # Money and ranges; hibari knows those between plain integers.
    (re.compile(r"(?<![A-Za-z])([A-Z]{1,2})(?=\$\d)"), r"\1 "),
    (
        re.compile(rf"([$£€])({_NUMBER})(?:{_TO}[$£€]|[-–~]| to \1(?=[\d.,]+ {_MAGNITUDE})){_UPPER_END}", _A),
        r"\2 to \1",
    ),
    (re.compile(rf"{_START}([$£€]?{_NUMBER}{_UNIT}?)[-–~]{_UPPER_END}", _A), r"\1 to "),
    # A hyphen between spaces may as well set apart what follows: `Jackets $100 - 20% off`.
    (re.compile(rf"{_START}(([$£€]?){_MEASURE}){_TO}(?=\2{_MEASURE}(?![\w-]))", _A), r"\1 to "),
    (re.compile(r"(?<=\d)am\b"), " A.M."),  # else sometimes the verb
    (re.compile(r"(?<![\w)])-(?=[$£€]\d)"), "minus "),
    (re.compile(r"(?<!\S)~\s?(?=[$£€]?\d)"), "about "),
    (re.compile(rf"([$£€]\d[\d,]*\.\d)(?!\w|\.\d|\s?{_MAGNITUDE})", _A), r"\g<1>0"),
    # hibari takes a full stop after a number for a part of it; it drops the space again.
    (re.compile(r"(?<=\d)(?=\.(?![\w.]))"), " "),
]
