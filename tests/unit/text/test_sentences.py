"""Where sentences end."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from higgs_server.text.sentences import clause_ends, sentence_ends, split_sentences

PROPERTY = settings(derandomize=True, max_examples=100, deadline=None)


@pytest.mark.parametrize(
    "sentence",
    [
        "Dr. Smith met Mrs. Jones and Prof. Li at St. Mary's.",
        "It costs 3.5 dollars, or 1,000.25 at 10.30.",
        "Fruit, e.g. apples, i.e. what grows, etc. is good at 5 p.m. on Sunday.",
        "The U.S. Army and the U.K. Navy met in Washington D.C. Monday.",
        "J. K. Rowling and J.R.R. Tolkien wrote books.",
        "Well... You know... it is so.",
        "See https://example.com/a.b?c=d!e and mail a.b@example.org today.",
        "No. 5 is on pp. 10-12 of Vol. 3, Jan. 3.",
        '"Stop!" he said.',
        "He wrote (see fig. 3) it in Node.js v2.0.1 and left.",
        "1. Buy milk.",
        "[SPEAKER0] 2. Buy milk.",
        "Steps: 1. Open the door; 2. Walk in; 3. Sit down.",
        "步骤：1.打开冰箱；2.放入大象；3.关门。",
        "步骤:1.打开冰箱;2.放入大象;3.关门.",
        "John Smith Jr. and approx. five others, vs. nobody.",
        "圆周率是3.14，约等于3。",
        "我住在U.S.很久了.",
        "等等……好吧。",
        "他用Python3.11写的.",
    ],
)
def test_one_sentence(sentence: str) -> None:
    assert split_sentences(sentence) == [sentence]


@pytest.mark.parametrize(
    "sentences",
    [
        ["Hello there!", "How are you?", "I am fine."],
        ["hello there.", "how are you?", "i am fine."],
        ["What?!", "No!!", "Yes."],
        ['He said "go."', "Then he left.", '"Why?"', "Nobody knew."],
        ["She nodded (yes.)", "Then she left.", "[Really?]", "Yes."],
        ["He works at Apple Inc.", "She does not.", "They like tea, milk, etc.", "We too."],
        ["It is 3.", "Then 4.", "No.", "I see."],
        ["See example.com.", "Then go."],
        ["So funny.", "<SE>[Laughter]</SE> Then we left."],
        ["1. Buy milk.", "2. Go home."],
        ["The answer is simple: 42.", "Let me explain.", "They live at Main Street, 12.", "We do not."],
        ["It is 10:30.", "It costs 1,000.", "On June 5, 2024.", "Count 1, 2, 3.", "Then go."],
    ],
)
def test_english(sentences: list[str]) -> None:
    assert split_sentences(" ".join(sentences)) == sentences


@pytest.mark.parametrize(
    "sentences",
    [
        ["你好。", "今天好吗？", "很好！", "走吧。"],
        ["“你好！”", "他说。", "（真的。）", "「好？」", "嗯。"],
        ["你好.", "今天好吗?", "很好!", "走吧."],
        ['你好, 欢迎使用"语音合成"服务.', "气温是25 degrees Celsius 室内."],
        ['他说"走."', "然后他走了.", '"好?"', '"好!"'],
        ["这是服务.", '"欢迎"使用.'],
        ["维生素C.", "它很好."],
        ["我买了25.", "后来走了."],
        ["最高气温:25.", "最低气温:18.", "明天有雨."],
        ["最高气温：25。", "最低气温：18。", "明天有雨。"],
        ["Mixed 你好.", "The end.", "再见。", "OK!", "好."],
    ],
)
def test_chinese_and_mixed(sentences: list[str]) -> None:
    assert split_sentences("".join(sentences)) == sentences


def test_lines_and_speakers_end_sentences() -> None:
    assert split_sentences("A title\nby nobody\r\n\n[SPEAKER0] Hi [SPEAKER1] there") == [
        "A title",
        "by nobody",
        "[SPEAKER0] Hi",
        "[SPEAKER1] there",
    ]


def test_blank_text_has_no_sentence() -> None:
    assert split_sentences("") == split_sentences(" \n ") == []


def test_clauses() -> None:
    text = "First, 1,000 at 10:30; then，二：三 - and: well... end…完"
    pieces = [text[a:b].strip() for a, b in zip([0, *clause_ends(text)], [*clause_ends(text), len(text)], strict=True)]
    assert pieces == ["First,", "1,000 at 10:30;", "then，", "二：", "三 -", "and:", "well...", "end…", "完"]


FRAGMENTS = ["Dr.", "Hello", "你好", "。", ".", "!", "?", "...", '"', "'", "”", ")", " ", "\n", "3.5", "U.S.", "e.g."]
TEXT = st.text() | st.lists(
    st.sampled_from([*FRAGMENTS, "[SPEAKER1]", "，", ",", "“", "(", "etc.", "\u2028", "\x00", "é", "𠀀", "\ud800"]),
    max_size=40,
).map("".join)


@PROPERTY
@given(TEXT)
def test_no_character_is_lost_or_doubled(text: str) -> None:
    pieces = split_sentences(text)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(piece and piece == piece.strip() for piece in pieces)


@PROPERTY
@given(TEXT)
def test_ends_are_inside_the_text_and_ascend(text: str) -> None:
    for ends in (sentence_ends(text), clause_ends(text)):
        assert ends == sorted(set(ends))
        assert all(0 < end <= len(text) for end in ends)
