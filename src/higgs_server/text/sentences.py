"""Where sentences and clauses end, in English, Chinese and text that mixes both. Knows no lengths.

Works on raw and on normalised text: normalisation turns 。 into a full stop without a space after it, so a half-width
mark also ends a sentence where Chinese stands right before or after it (`服务.气温是25`). In doubt a sentence goes on:
a missed end costs a longer piece, a wrong one an audible pause in the middle of a name.

Every function is linear in the text's length: each mark looks at a bounded neighbourhood only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from higgs_server.text.dialogue import TAG

CJK = r"\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Characters written without spaces, for use inside a regex class: Han and kana. Hangul has spaces."""

_CJK = re.compile(f"[{CJK}]")
_CLOSERS = re.compile(r"""["'”’」』)\]）】》〉}]*""")
_NEXT = re.compile(r"""\s*["'“‘「『(\[（【《<]*""")
_LINE_END = re.compile(r"[\n\r]\s*")
_SENTENCE_MARK = re.compile(r"[.!?。！？｡]+")
_CLAUSE_END = re.compile(
    rf"""[,;:，；：、]["'”’」』)\]）】》]*(?=\s)"""  # not 1,000 or 10:30
    rf"""|(?<=[{CJK}])[,;:]"""
    rf"""|[,;:](?=[{CJK}])"""
    r"""|[，；：、][”’」』）】》]*"""
    rf"""|…+["”’」』）]*|(?<!\.)\.{{2,}}+["'”’)\]]*(?=[\s{CJK}])"""  # a pause, though no sentence's end
    r"""|(?<=\s)[-–—]+(?=\s)|[—–]+"""
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Never end a sentence: a name follows.
_TITLES = _words("""
    mr mrs ms mx dr prof st mt rev fr gen sen rep gov capt cpt cmdr lt col sgt maj adm hon pres supt messrs mme mlle
    vs viz cf eg ie ca approx
""")
# End no sentence where a number follows: No. 5, Jan. 3, pp. 10-12.
_BEFORE_NUMBER = _words("""
    no nos nr fig figs vol vols ch chap sec art eq p pp para ver jan feb mar apr jun jul aug sep sept oct nov dec
""")
# End a sentence only where the next one starts with a capital letter or is Chinese.
_MAYBE_LAST = _words("""
    etc al inc ltd co corp llc plc bros jr sr esq ave blvd rd sq hwy dept est govt univ assn bldg ed eds min max avg
    temp tel ext misc abbr cont incl excl resp hr hrs secs mins lb lbs oz ft in cm mm km kg yd
""")
_WORD_BEFORE = re.compile(rf"[^\W\d_{CJK}](?:[^\W\d_{CJK}]|\.(?=[^\W\d_{CJK}]))*$")
_LIST_NUMBER = re.compile(r"\s*\d{1,5}|.*(?:(?<!\d)[:：]\s?1|[;；]\s?\d{1,2})", re.DOTALL)
"""What comes before the full stop of `1. Buy milk` and `Steps: 1. Open; 2. Close`, but not of `The answer: 42.`"""
_LOOK_BACK = 24
"""Characters before a full stop that are read: longer than any abbreviation."""


def split_sentences(text: str) -> list[str]:
    """Sentences in order, stripped, none empty. Joined they are the text, white space aside."""
    pieces, start = [], 0
    for end in [*sentence_ends(text), len(text)]:
        pieces.append(text[start:end].strip())
        start = end
    return [piece for piece in pieces if piece]


def line_ends(text: str) -> list[int]:
    """Offsets where a line or a speaker's turn ends and the next one starts, ascending."""
    ends = {match.end() for match in _LINE_END.finditer(text)} | {match.start() for match in TAG.finditer(text)}
    return sorted(ends - {0, len(text)})


def sentence_ends(text: str) -> list[int]:
    """Offsets right after a sentence, closing quotes and brackets included, ascending. Ends of lines count."""
    lines = line_ends(text)
    ends = set(lines)
    for start, end in zip([0, *lines], [*lines, len(text)], strict=True):
        ends.update(_ends_in_line(text, start, end))
    return sorted(ends - {len(text)})


def clause_ends(text: str) -> list[int]:
    """Offsets right after a comma, colon, semicolon or dash that sets clauses apart, ascending."""
    return [match.end() for match in _CLAUSE_END.finditer(text)]


def _ends_in_line(text: str, line: int, line_end: int) -> Iterator[int]:
    counted = line
    speaker = TAG.match(text, line, line_end)
    start = speaker.end() if speaker else line
    quotes = 0
    for mark in _SENTENCE_MARK.finditer(text, line, line_end):
        quotes += text.count('"', counted, mark.start())
        counted = mark.start()
        end = _after_closers(text, mark.end(), line_end, quote_open=quotes % 2 == 1)
        if end < line_end and _ends_sentence(text, start, mark, end, line_end):
            yield end
            start = end


def _after_closers(text: str, start: int, line_end: int, quote_open: bool) -> int:
    """Offset after the closing quotes and brackets at `start`.

    A straight quote may open or close. It closes before white space; where text follows at once (Chinese), it closes
    if one is open in this line.
    """
    match = _CLOSERS.match(text, start, line_end)
    end = match.end() if match else start
    if end == line_end or text[end].isspace():
        return end
    for offset in range(start, end):
        if text[offset] == "'" or (text[offset] == '"' and not quote_open):
            return offset
        quote_open ^= text[offset] == '"'
    return end


def _ends_sentence(text: str, start: int, mark: re.Match[str], end: int, line_end: int) -> bool:
    """Whether the sentence begun at `start` ends with `mark` and its closers, which reach to `end`."""
    marks = mark[0]
    if not marks.isascii():
        return True
    opening = _NEXT.match(text, end, line_end)
    following = text[opening.end() : min(opening.end() + 1, line_end)] if opening else ""
    if not following:
        return False  # The line's end is the sentence's.
    before = text[mark.start() - 1] if mark.start() > start else ""
    spaced = text[end].isspace()
    if not spaced and not _CJK.match(before) and not _CJK.match(following):
        return False  # 3.5, U.S.A, example.com
    quoted = end > mark.end()
    if quoted and following.islower():
        return False  # "Stop!" he said.
    if "!" in marks or "?" in marks:
        return True
    return len(marks) == 1 and _full_stop_ends(text, start, mark.start(), following)


def _full_stop_ends(text: str, start: int, dot: int, following: str) -> bool:
    """Whether a single full stop at `dot` ends a sentence rather than an abbreviation or a list's number."""
    if _LIST_NUMBER.fullmatch(text, max(start, dot - _LOOK_BACK), dot):
        return False
    chinese_follows = _CJK.match(following) is not None
    match = _WORD_BEFORE.search(text, max(start, dot - _LOOK_BACK), dot)
    word = match[0].lower() if match else ""
    if word in _TITLES or _is_dotted(word):
        return False
    if len(word) == 1:
        return chinese_follows  # J. K. Rowling; but 维生素C.它
    if word in _BEFORE_NUMBER:
        return not following.isdecimal()
    return word not in _MAYBE_LAST or following.isupper() or chinese_follows


def _is_dotted(word: str) -> bool:
    """e.g, U.S, p.m, Ph.D, J.K: letters with full stops between them, as against example.com."""
    return "." in word and all(len(part) <= 2 for part in word.split("."))
