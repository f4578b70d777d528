"""A text that was rewritten and still knows, character by character, which part of the first one it stands for.

Offsets count Unicode code points, as Python's strings do. Knows no rule by which texts are rewritten.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Traced:
    """`text[i]` stands for `[starts[i], ends[i])` of the original; both never descend."""

    text: str
    starts: Sequence[int]
    ends: Sequence[int]

    @classmethod
    def of(cls, text: str) -> Traced:
        """An original: each character stands for itself."""
        return cls(text, range(len(text)), range(1, len(text) + 1))

    def sub(self, pattern: re.Pattern[str], replacement: Callable[[re.Match[str]], str]) -> Traced:
        """As `pattern.sub`, for patterns that never match the empty string.

        Each character of a replacement stands for all that the match stood for.
        """
        texts: list[str] = []
        starts: list[int] = []
        ends: list[int] = []
        done = 0
        for match in pattern.finditer(self.text):
            first, last = match.span()
            new = replacement(match)
            texts += self.text[done:first], new
            starts += self.starts[done:first]
            starts += [self.starts[first]] * len(new)
            ends += self.ends[done:first]
            ends += [self.ends[last - 1]] * len(new)
            done = last
        if not done:
            return self
        return Traced("".join((*texts, self.text[done:])), [*starts, *self.starts[done:]], [*ends, *self.ends[done:]])

    def span(self, start: int, end: int) -> tuple[int, int]:
        """What `text[start:end]`, not empty, stands for: `[start, end)` of the original."""
        return self.starts[start], self.ends[end - 1]
