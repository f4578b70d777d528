"""Long text in pieces: nothing lost, nothing doubled, cut where a reader would pause."""

from __future__ import annotations

import time
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from higgs_server.text.chunk import ChunkMethod, count_words, split_long
from higgs_server.text.chunk import chunk as chunk_traced
from higgs_server.text.dialogue import parse_turns
from higgs_server.text.sentences import split_sentences
from higgs_server.text.traced import Traced

PROPERTY = settings(derandomize=True, max_examples=100, deadline=None)


def chunk(text: str, method: ChunkMethod | None, max_words: int = 200, max_turns: int = 1) -> list[str]:
    """What the pieces say; test_spans.py is about where they stand."""
    return [piece.text for piece in chunk_traced(Traced.of(text), method, max_words, max_turns)]


def said_by(pieces: list[str]) -> dict[int | None, str]:
    """All that each speaker says, without white space."""
    said: dict[int | None, str] = defaultdict(str)
    for piece in pieces:
        for turn in parse_turns(piece):
            said[turn.speaker] += "".join(turn.text.split())
    return dict(said)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        ("Hello, world!", 2),
        ("It's 3.5 e-mails - no?", 4),
        ("你好，世界。", 4),
        ("我用Python写code.", 5),
        ("[SPEAKER0] Hi [speaker 12] there", 2),
        ("... !?", 0),
        ("x" * 40, 1),
        ("x" * 41, 2),
    ],
)
def test_count_words(text: str, words: int) -> None:
    assert count_words(text) == words


def test_without_a_method_the_text_is_one_piece() -> None:
    assert chunk("One. Two.\nThree.", None, max_words=1) == ["One. Two.\nThree."]


@pytest.mark.parametrize("method", [None, "speaker", "word"])
def test_blank_text_is_no_piece(method: ChunkMethod | None) -> None:
    assert chunk(" \n ", method) == []


DIALOGUE = "[SPEAKER0] One.\n[SPEAKER1] Two.\nStill two. [SPEAKER0] Three.\n[SPEAKER2]\n[SPEAKER1] Four."


def test_by_speaker() -> None:
    turns = ["[SPEAKER0] One.", "[SPEAKER1] Two.\nStill two.", "[SPEAKER0] Three.", "[SPEAKER1] Four."]
    assert chunk(DIALOGUE, "speaker") == turns
    assert chunk(DIALOGUE, "speaker", max_turns=3) == ["\n".join(turns[:3]), turns[3]]
    assert chunk("No tags.\nAt all.", "speaker") == ["No tags.\nAt all."]


def test_by_words_ends_at_sentences() -> None:
    text = "One two three. Four five six. Seven eight, nine ten."
    assert chunk(text, "word", max_words=6) == ["One two three. Four five six.", "Seven eight, nine ten."]
    assert chunk(text, "word", max_words=5) == ["One two three.", "Four five six.", "Seven eight, nine ten."]


def test_by_words_ends_at_clauses_then_at_words() -> None:
    assert chunk("One two, three four five six seven. Eight.", "word", max_words=4) == [
        "One two,",
        "three four five six",
        "seven. Eight.",
    ]


def test_by_words_prefers_the_end_of_a_line_in_the_second_half() -> None:
    assert chunk("One two.\nThree. Four five.", "word", max_words=3) == ["One two.", "Three. Four five."]
    assert chunk("One.\nTwo three. Four five six.", "word", max_words=5) == ["One.\nTwo three.", "Four five six."]


def test_chinese_by_words() -> None:
    text = "今天天气很好，我们去公园。明天下雨。"
    assert chunk(text, "word", max_words=11) == ["今天天气很好，我们去公园。", "明天下雨。"]
    assert chunk(text, "word", max_words=7) == ["今天天气很好，", "我们去公园。", "明天下雨。"]
    assert chunk(text, "word", max_words=3) == ["今天天", "气很好，", "我们去", "公园。", "明天下", "雨。"]
    assert chunk("服务.气温是25 degrees.室内.", "word", max_words=7) == ["服务.气温是25 degrees.", "室内."]


def test_a_cut_turn_repeats_its_tag() -> None:
    text = "[SPEAKER0] One two three. Four five six.\n[SPEAKER1] Seven. [SPEAKER0] Eight nine ten eleven."
    assert chunk(text, "word", max_words=3) == [
        "[SPEAKER0] One two three.",
        "[SPEAKER0] Four five six.",
        "[SPEAKER1] Seven.",
        "[SPEAKER0] Eight nine ten",
        "[SPEAKER0] eleven.",
    ]
    assert chunk(text, "word", max_words=8) == [
        "[SPEAKER0] One two three. Four five six.\n[SPEAKER1] Seven.",
        "[SPEAKER0] Eight nine ten eleven.",
    ]


def test_a_word_without_end_is_cut() -> None:
    assert [len(piece) for piece in split_long("a bb " + "x" * 100, 2)] == [4, 80, 20]


def test_a_piece_has_at_least_a_word() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        chunk("Hello.", "word", max_words=0)


@pytest.mark.parametrize(
    "unit",
    ["Dr. Smith left, at 3.5. ", "今天，天气好。", "a", "你", '!" ', ". ", "[SPEAKER1] a ", "[ ", ".", ',"', "-"],
)
def test_time_is_linear(unit: str) -> None:
    text = (unit * 100_000)[:100_000]
    start = time.process_time()
    chunk(text, "word", max_words=50)
    # Well under a second on an idle core; a quadratic step would take minutes.
    assert time.process_time() - start < 5


WORDS = [
    "one",
    "Dr.",
    "3.5",
    "你好",
    "，",
    "。",
    ".",
    "!",
    ",",
    " ",
    "\n",
    '"',
    "”",
    "x" * 50,
    "<SE>[Music]</SE>",
    "(",
    "<",
]
TEXT = st.text() | st.lists(
    st.sampled_from([*WORDS, "[SPEAKER0]", "[speaker 1]", "[SPEAKER", "]", "[", "\u3000", "\x00", "é", "🙂", "\ud800"]),
    max_size=60,
).map("".join)
METHODS = st.sampled_from([None, "speaker", "word"])
SIZES = st.integers(1, 12)


@PROPERTY
@given(TEXT, METHODS, SIZES, st.integers(1, 3))
def test_nothing_is_lost_or_doubled(text: str, method: ChunkMethod | None, max_words: int, max_turns: int) -> None:
    pieces = chunk(text, method, max_words, max_turns)
    assert said_by(pieces) == said_by([text])
    assert all(piece.strip() for piece in pieces)


@PROPERTY
@given(TEXT, SIZES)
def test_no_piece_is_too_long(text: str, max_words: int) -> None:
    for piece in chunk(text, "word", max_words):
        assert count_words(piece) <= max_words


@PROPERTY
@given(TEXT, SIZES)
def test_every_piece_of_a_dialogue_says_who_speaks(text: str, max_words: int) -> None:
    pieces = chunk(f"[SPEAKER3] {text}", "word", max_words)
    assert all(parse_turns(piece)[0].speaker is not None for piece in pieces)


@PROPERTY
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(9, 20))
def test_a_sentence_that_fits_is_never_cut(lengths: list[int], max_words: int) -> None:
    sentences = [" ".join(["Word"] + ["word"] * (length - 1)) + "." for length in lengths]
    pieces = chunk(" ".join(sentences), "word", max_words)
    assert [sentence for piece in pieces for sentence in split_sentences(piece)] == sentences


@PROPERTY
@given(TEXT, SIZES)
def test_split_long_keeps_every_character(text: str, max_words: int) -> None:
    assert "".join("".join(split_long(text, max_words)).split()) == "".join(text.split())
