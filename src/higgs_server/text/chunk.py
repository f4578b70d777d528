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
from itertools import pairwise
from typing import Literal

from higgs_server.text.dialogue import TAG, parse_turns, tag
from higgs_server.text.sentences import CJK, clause_ends, line_ends, sentence_ends, split_sentences

__all__ = ["ChunkMethod", "chunk", "count_words", "split_long", "split_sentences"]

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


def chunk(text: str, method: ChunkMethod | None, max_words: int = 200, max_turns: int = 1) -> list[str]:
    """Pieces to be spoken in order, stripped, none empty; none at all for blank text.

    None: the whole text. "speaker": `max_turns` consecutive turns a piece. "word": at most `max_words` (>= 1) words a
    piece, turns of several speakers together where they fit.
    """
    if method is None:
        return [text] if text.strip() else []
    turns = [turn.tagged for turn in parse_turns(text)]
    if method == "speaker":
        return ["\n".join(turns[first : first + max_turns]) for first in range(0, len(turns), max_turns)]
    return list(_with_tags(split_long("\n".join(turns), max_words)))


def split_long(sentence: str, max_words: int) -> list[str]:
    """Cuts a sentence, or any text, into pieces of at most `max_words` (>= 1) words, stripped, none empty.

    Joined they are the text, white space aside. Tags are kept as they are, never repeated and never last in a piece.
    """
    if max_words < 1:
        raise ValueError("max_words must be at least 1")
    cuts = _Cuts(sentence)
    pieces, start = [], 0
    while start < len(sentence):
        end = cuts.best(start, max_words)
        pieces.append(sentence[start:end].strip())
        start = end
    return [piece for piece in pieces if piece]


def _with_tags(pieces: list[str]) -> Iterator[str]:
    speaking: int | None = None
    for piece in pieces:
        yield piece if speaking is None or TAG.match(piece) else f"{tag(speaking)} {piece}"
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
