"""A Markdown page as the documentation tests see it: headings, fenced blocks, tables. Not a Markdown parser."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block. `language` is what stands behind the opening fence."""

    language: str
    code: str
    line: int


class Page:
    """One file."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = (ROOT / name).read_text("utf-8")

    @cached_property
    def blocks(self) -> list[Block]:
        """Fenced blocks in order."""
        return [
            Block(match[1], match[2], self.text.count("\n", 0, match.start()) + 1)
            for match in _FENCE.finditer(self.text)
        ]

    @cached_property
    def prose(self) -> str:
        """The page without its fenced blocks."""
        return _FENCE.sub("", self.text)

    @cached_property
    def heading_levels(self) -> list[int]:
        """1 for `#`, 2 for `##`, in order."""
        return [len(match[1]) for match in re.finditer(r"^(#+) ", self.prose, re.MULTILINE)]

    @cached_property
    def rows(self) -> list[list[str]]:
        """Cells of every table row, heads and rules included, back-quotes taken off where they enclose a cell."""
        rows = (line for line in self.prose.splitlines() if line.startswith("|"))
        return [[_plain(cell) for cell in row.strip("|").split("|")] for row in rows]

    @cached_property
    def links(self) -> list[str]:
        """Targets of links that lead into this repository."""
        targets = re.findall(r"\]\(([^)\s]+)\)", self.prose)
        return [target for target in targets if not re.match(r"\w+:|#", target)]


def _plain(cell: str) -> str:
    cell = cell.strip()
    return cell[1:-1] if re.fullmatch(r"`[^`]+`", cell) else cell
