"""Dialogue: text with `[SPEAKERn]` tags -> turns. Knows no voices but their number, and does not change the words.

A tag opens a turn that lasts until the next tag, wherever on a line the tag stands. Besides the canonical
`[SPEAKER0]` any letter case and spaces inside the brackets are understood (`[speaker 0]`): nobody who writes that
wants it read aloud. `normalize` turns them into the canonical form, the only one the model has learned.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from higgs_server.text.traced import Traced
from higgs_server.types import InvalidRequest

# Four digits at most: what is longer is no speaker, and int() refuses thousands of digits.
TAG = re.compile(r"\[[ \t]*SPEAKER[ \t]*(\d{1,4})[ \t]*\]", re.IGNORECASE)
_EMPTY_TURN = re.compile(rf"{TAG.pattern}\s*+(?={TAG.pattern}|\Z)", re.IGNORECASE)
_BEFORE_TURN = re.compile(rf"(?<!\s)\s++(?={TAG.pattern})", re.IGNORECASE)
_OPENING = re.compile(rf"{TAG.pattern}\s*+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker says in one go. `speaker` is None for text before the first tag; `text` is stripped."""

    speaker: int | None
    text: str

    @property
    def tagged(self) -> str:
        """The turn as it is written in a dialogue: `[SPEAKER0] Hello.`"""
        return self.text if self.speaker is None else f"{tag(self.speaker)} {self.text}"


def tag(speaker: int) -> str:
    """The canonical tag, `[SPEAKER0]`."""
    return f"[SPEAKER{speaker}]"


def canonical_tags(text: Traced) -> Traced:
    """Writes every tag in its canonical form."""
    return text.sub(TAG, lambda match: tag(int(match[1])))


def turns_as_lines(text: Traced) -> Traced:
    """The dialogue of `parse_turns`, each turn on a line of its own: `[SPEAKER0] Hello.`"""
    text = text.sub(_EMPTY_TURN, lambda _: "").sub(_BEFORE_TURN, lambda _: "")
    return text.sub(_OPENING, lambda match: f"\n{tag(int(match[1]))} ")


def parse_turns(text: str) -> list[Turn]:
    """Turns in the order they are spoken; turns without any text are dropped."""
    before, *rest = TAG.split(text)
    turns = [Turn(None, before.strip())]
    turns += [Turn(int(number), words.strip()) for number, words in zip(rest[::2], rest[1::2], strict=True)]
    return [turn for turn in turns if turn.text]


def speakers(text: str) -> list[int]:
    """Numbers of the speakers whose tags occur, ascending, each once."""
    return sorted({int(number) for number in TAG.findall(text)})


def check_speakers(text: str, voices: int) -> None:
    """Raises InvalidRequest where so many voices are given, and one of the speakers has none."""
    highest = max(speakers(text), default=0)
    if 0 < voices <= highest:
        raise InvalidRequest(
            f"The text has a [SPEAKER{highest}], but ref_audio names {voices} voice(s): "
            "give one for each speaker, separated by commas, or none at all.",
            f"文本中有 [SPEAKER{highest}]，但 ref_audio 只给出了 {voices} 个音色："
            "请为每位说话人各给一个（逗号分隔），或全部省略。",
            param="ref_audio",
        )
