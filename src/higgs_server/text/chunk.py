"""Long text in pieces that are generated one after another. Knows no model and does not change the words.

**Words.** A run of characters between spaces is one word, and one more for every 40 letters where it is longer (no
piece grows without bound, whatever the script). A Han character or a kana is a word of its own, close to a spoken
syllable; so 200 words are about 80 s of English and 50 s of Chinese. Speaker tags and punctuation count nothing.

**Where to cut.** Each piece is as long as `max_words` allows, and ends at the best place within that reach: the end
of a line or of a speaker's turn if one lies in the second half, else the last end of a sentence, of a clause, of a
word (or Chinese character), and only inside a word longer than the whole reach in the middle of it.

**Dialogue.** A piece that starts within a turn repeats the turn's tag, so each piece says by itself who speaks. The
words of each speaker, over all pieces in order, are those of the text, none lost and none twice.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from higgs_server.text.dialogue import TAG, tag, turns_as_lines
from higgs_server.text.sentences import CJK, clause_ends, line_ends, sentence_ends, split_sentences
from higgs_server.text.traced import Traced

__all__ = ["ChunkMethod", "Piece", "chunk", "count_words", "split_long", "split_sentences"]

ChunkMethod = Literal["speaker", "word"]

_LETTERS_A_WORD = 40
_LETTER = re.compile(r"\w")
_RUN = re.compile(rf"[{CJK}]|[^\s{CJK}]+")
_SOUND = r"<SE(?:_[se])?>\[\w+\]</SE(?:_[se])?>"
# What is never cut: a Chinese character, a word (or 40 characters of a long one), a tag, a sound.
_ATOM = re.compile(
    rf"[{CJK}]|[^\s\[<{CJK}]{{1,{_LETTERS_A_WORD}}}|{TAG.pattern}|{_SOUND}|[\[<]",
    re.IGNORECASE,
)
_OPENING = tuple("([{<“‘「『（【《")


def count_words(text: str) -> int:
    """How much there is to say, in words as the module's docstring defines them."""
    return sum(-(-len(_LETTER.findall(run)) // _LETTERS_A_WORD) for run in _RUN.findall(TAG.sub(" ", text)))


@dataclass(frozen=True, slots=True)
class Piece:
    """What is generated in one go: `text`, stripped and not empty, says what `[start, end)` of the original says."""

    text: str
    start: int
    end: int


def chunk(text: Traced, method: ChunkMethod | None, max_words: int = 200, max_turns: int = 1) -> list[Piece]:
    """Pieces to be spoken in order; none at all for blank text.

    None: the whole text. "speaker": `max_turns` consecutive turns a piece. "word": at most `max_words` (>= 1) words a
    piece, turns of several speakers together where they fit.

    Spans ascend and never overlap. A cut within something that stands for a single character (`°C`, `…`) leaves that
    character to the piece before it. Outside all spans there are only white space and turns without any text.
    """
    if method is not None:
        text = turns_as_lines(text)
    if method == "speaker":
        turns = [match.start() for match in TAG.finditer(text.text)]
        if not turns or text.text[: turns[0]].strip():
            turns.insert(0, 0)
        cuts = turns[::max_turns]
    else:
        cuts = [0] if method is None else long_cuts(text.text, max_words)
    return list(_pieces(text, cuts))


def split_long(sentence: str, max_words: int) -> list[str]:
    """Cuts a sentence, or any text, into pieces of at most `max_words` (>= 1) words, stripped, none empty.

    Joined they are the text, white space aside. Tags are kept as they are, never repeated and never last in a piece.
    """
    pieces = (sentence[start:end].strip() for start, end in pairwise([*long_cuts(sentence, max_words), len(sentence)]))
    return [piece for piece in pieces if piece]


def long_cuts(text: str, max_words: int) -> list[int]:
    """Where the pieces of `split_long` begin, ascending."""
    if max_words < 1:
        raise ValueError("max_words must be at least 1")
    places = _Cuts(text)
    cuts, start = [], 0
    while start < len(text):
        cuts.append(start)
        start = places.best(start, max_words)
    return cuts


def _pieces(text: Traced, cuts: list[int]) -> Iterator[Piece]:
    speaking: int | None = None
    done = 0
    for start, end in pairwise([*cuts, len(text.text)]):
        piece = text.text[start:end].strip()
        if not piece:
            continue
        start = text.text.index(piece, start)
        first, done = (max(done, offset) for offset in text.span(start, start + len(piece)))
        yield Piece(piece if speaking is None or TAG.match(piece) else f"{tag(speaking)} {piece}", first, done)
        for match in TAG.finditer(piece):
            speaking = int(match[1])


class _Cuts:
    """All places to cut one text, with the number of words before each."""

    def __init__(self, text: str) -> None:
        lines, sentences, clauses = line_ends(text), sentence_ends(text), clause_ends(text)
        between_words: list[int] = []
        within_words: list[int] = []
        words = 0
        words_before = {0: 0}
        # Counted from place to place, so that no word reaches over one.
        for start, end in pairwise(sorted({0, len(text), *lines, *sentences, *clauses})):
            for match in _ATOM.finditer(text, start, end):
                if match.lastindex:
                    continue  # A tag is never the last of a piece: the words it announces would go without it.
                atom, place = match[0], match.end()
                if _LETTER.search(atom):
                    words += 1
                elif atom.endswith(_OPENING):
                    continue
                words_before[place] = words
                whole = len(atom) < _LETTERS_A_WORD or text[place : place + 1].isspace()
                (between_words if whole else within_words).append(place)
            words_before[end] = words
        self._words_before = words_before
        self._end = len(text)
        self._lines = _Places(lines, words_before)
        self._others = [_Places(places, words_before) for places in (sentences, clauses, between_words, within_words)]

    def best(self, start: int, max_words: int) -> int:
        """The best place to end a piece that starts at `start`, itself a place to cut."""
        done = self._words_before[start]
        if self._words_before[self._end] - done <= max_words:
            return self._end
        line = self._lines.last(start, done + max_words)
        if line and 2 * (self._words_before[line] - done) >= max_words:
            return line
        found = (places.last(start, done + max_words) for places in self._others)
        return next((place for place in found if place), self._end)


class _Places:
    """Offsets of one kind, ascending, and the number of words before each."""

    def __init__(self, offsets: list[int], words_before: dict[int, int]) -> None:
        self._offsets = offsets
        self._words = [words_before[offset] for offset in offsets]

    def last(self, after: int, most_words: int) -> int | None:
        """The last offset beyond `after` with at most `most_words` before it."""
        index = bisect_right(self._words, most_words) - 1
        return self._offsets[index] if index >= 0 and self._offsets[index] > after else None
