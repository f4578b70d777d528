"""Where the pieces of a text stand in what the user wrote, and that rewriting a text keeps track of it."""

from __future__ import annotations

import re
from collections import defaultdict
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from higgs_server.text.chunk import ChunkMethod, Piece, chunk
from higgs_server.text.dialogue import parse_turns
from higgs_server.text.normalize import normalize, normalized
from higgs_server.text.traced import Traced

PROPERTY = settings(derandomize=True, max_examples=200, deadline=None)


def plan(text: str, method: ChunkMethod | None = "word", max_words: int = 200, max_turns: int = 1) -> list[Piece]:
    return chunk(normalized(text), method, max_words, max_turns)


def said(text: str) -> dict[int | None, str]:
    """What each speaker says in normalised text, without white space and the full stop that ends it."""
    words: dict[int | None, str] = defaultdict(str)
    for turn in parse_turns(text):
        words[turn.speaker] += "".join(turn.text.split())
    return {speaker: what.removesuffix(".") for speaker, what in words.items()}


@pytest.mark.parametrize(
    ("text", "max_words", "spans"),
    [
        ("One two. Three four.", 2, ["One two.", "Three four."]),
        ("  今天天气很好，我们去公园。\r\n\r\n 明天下雨 ", 11, ["今天天气很好，我们去公园。", "明天下雨"]),
        ("It is 25°C (or 77°F) here.\nGood.", 6, ["It is 25°C (or", "77°F) here.\nGood."]),
        (
            "【speaker 0】一二三。四五六。 [SPEAKER1]\n[speaker1] Hi",
            3,
            ["【speaker 0】一二三。", "四五六。", "[speaker1] Hi"],
        ),
        ("Ha [ laugh][laugh] ha. 😀 Yes [music  end]", 4, ["Ha [ laugh][laugh] ha.", "😀 Yes [music  end]"]),
        ("“你好。”她说。", 2, ["“你好。”", "她说。"]),
    ],
)
def test_spans_are_what_was_written(text: str, max_words: int, spans: list[str]) -> None:
    assert [text[piece.start : piece.end] for piece in plan(text, "word", max_words)] == spans


def test_spans_of_turns() -> None:
    text = "Intro.\n[SPEAKER0] One. [speaker 1]\n[SPEAKER1] Two.\nStill. 【SPEAKER0】 Three."
    turns = ["Intro.", "[SPEAKER0] One.", "[SPEAKER1] Two.\nStill.", "【SPEAKER0】 Three."]
    assert [text[piece.start : piece.end] for piece in plan(text, "speaker")] == turns
    assert [text[piece.start : piece.end] for piece in plan(text, "speaker", max_turns=3)] == [
        text[: text.index(" 【")],
        turns[3],
    ]
    assert [(piece.start, piece.end) for piece in plan(f" {text} ", None)] == [(1, 1 + len(text))]


def test_a_cut_within_one_character_leaves_it_to_the_first_piece() -> None:
    assert plan("25°C", max_words=2) == [Piece("25 degrees", 0, 4), Piece("Celsius.", 4, 4)]


WRITTEN = [
    "[laugh]", "[humming  start]", "[music", " end]", "<SE>", "【", "】", "(", ")", "（", "[", "]", "°", "°C", "°F",
    "F", "[SPEAKER0]", "[speaker ", "0]", "【SPEAKER 1】", "[SPEAKER2] ", "你好", "今天天气", "，", "。", "！", "a",
    "one", "Dr.", "3.5", "two.", "!", '"', "”", "“", "…", "—", "é", "🙂", " ", "\n", "\r\n", "\t", "\u3000", "\x00",
    "\ud800", "\u2028", "x" * 50,
]  # fmt: skip
TEXT = st.text() | st.lists(st.sampled_from(WRITTEN), max_size=40).map("".join)
METHODS = st.sampled_from([None, "speaker", "word"])
SIZES = st.integers(1, 9)


@PROPERTY
@given(TEXT, METHODS, SIZES, st.integers(1, 3))
def test_spans_ascend_and_leave_out_nothing_that_is_spoken(
    text: str, method: ChunkMethod | None, max_words: int, max_turns: int
) -> None:
    pieces = plan(text, method, max_words, max_turns)
    edges = [0, *(edge for piece in pieces for edge in (piece.start, piece.end)), len(text)]
    assert edges == sorted(edges)
    for start, end in list(pairwise(edges))[::2]:
        outside = text[start:end]
        assert not parse_turns(normalize(outside).removesuffix(".")), outside
        assert "." not in outside


@PROPERTY
@given(TEXT, METHODS, SIZES, st.integers(1, 3))
def test_what_stands_in_a_span_is_what_the_piece_says(
    text: str, method: ChunkMethod | None, max_words: int, max_turns: int
) -> None:
    """But for ° where a cut may fall within one character."""
    text = text.replace("°", "-")
    for piece in plan(text, method, max_words, max_turns):
        assert list(said(normalize(text[piece.start : piece.end])).values()) == list(said(piece.text).values())


@PROPERTY
@given(TEXT)
def test_a_traced_text_is_the_text_substituted(text: str) -> None:
    pattern = re.compile(r"o+|[,，]\s*|你")
    traced = Traced.of(text).sub(pattern, lambda match: match[0] * 2).sub(re.compile(r"\s+"), lambda _: "")
    assert traced.text == re.sub(r"\s+", "", pattern.sub(lambda match: match[0] * 2, text))
    assert len(traced.starts) == len(traced.ends) == len(traced.text)
    for character, start, end in zip(traced.text, traced.starts, traced.ends, strict=True):
        assert character in text[start:end]
