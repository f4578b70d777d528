"""The reference's spelling, rule by rule."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from higgs_server.text.normalize import normalize

PROPERTY = settings(derandomize=True, max_examples=100, deadline=None)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("你好，世界。", "你好, 世界."),
        ("一、二；三：四", "一,二;三:四."),
        ("【注】《书》「一」『二』‘三’", '[注]<书>"一""二"\'三\''),
        ("等等……好—吧", "等等......好-吧."),
        ("史蒂夫·乔布斯", "史蒂夫.乔布斯."),
        ("a(b)c （d）", "a b c d."),
        ("It is 25°C or 77°F", "It is 25 degrees Celsius or 77 degrees Fahrenheit."),
        ("  two   spaces \t and tabs  ", "two spaces and tabs."),
        ("one\r\n\r\n  \n two ", "one\ntwo."),
    ],
)
def test_punctuation_brackets_units_and_white_space(written: str, read: str) -> None:
    assert normalize(written) == read


@pytest.mark.parametrize(
    ("tag", "sound"),
    [
        ("[laugh]", "<SE>[Laughter]</SE>"),
        ("[humming start]", "<SE>[Humming]</SE>"),
        ("[humming end]", "<SE_e>[Humming]</SE_e>"),
        ("[music]", "<SE>[Music]</SE>"),
        ("[music start]", "<SE_s>[Music]</SE_s>"),
        ("[music end]", "<SE_e>[Music]</SE_e>"),
        ("[sing start]", "<SE_s>[Singing]</SE_s>"),
        ("[sing end]", "<SE_e>[Singing]</SE_e>"),
        ("[applause]", "<SE>[Applause]</SE>"),
        ("[cheering]", "<SE>[Cheering]</SE>"),
        ("[cough]", "<SE>[Cough]</SE>"),
    ],
)
def test_sound_tags(tag: str, sound: str) -> None:
    assert normalize(f"Well {tag} then.") == f"Well {sound} then."
    assert normalize(tag.replace("[", "【").replace("]", "】") + "x.") == f"{sound}x."


@pytest.mark.parametrize("end", [".", "!", "?", ",", ";", '"', "'", "。", "！", "”"])
def test_a_text_that_ends_gets_no_full_stop(end: str) -> None:
    assert normalize(f"Hello{end}")[:-1] == "Hello"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("Hello", "Hello."),
        ("Hello:", "Hello:."),
        ("[laugh]", "<SE>[Laughter]</SE>"),
        ("La [music end]", "La <SE_e>[Music]</SE_e>"),
        ("La [music start]", "La <SE_s>[Music]</SE_s>."),
        ("[SPEAKER0] a\n[SPEAKER1] b", "[SPEAKER0] a\n[SPEAKER1] b."),
    ],
)
def test_the_full_stop_at_the_end(written: str, read: str) -> None:
    assert normalize(written) == read


def test_speaker_tags_become_canonical() -> None:
    assert normalize("[speaker0] Hi. 【SPEAKER 01】你好。") == "[SPEAKER0] Hi. [SPEAKER1]你好."


@pytest.mark.parametrize("blank", ["", " \n\t ", "()", "（　）"])
def test_nothing_stays_nothing(blank: str) -> None:
    assert normalize(blank) == ""


FRAGMENTS = [
    "[laugh]",
    "[humming  start]",
    "【",
    "】",
    "(",
    ")",
    "°",
    "°C",
    "F",
    "[speaker ",
    "0]",
    "你好",
    "，",
    "。",
    "a",
    "'",
    "<SE>",
    "[music",
    " end]",
    "…",
]
TEXT = st.text() | st.lists(
    st.sampled_from([*FRAGMENTS, " ", "\n", "\r", "\u2028", "\ud800", "\x00"]), max_size=30
).map("".join)


@PROPERTY
@given(TEXT)
def test_any_text_is_normalised_once_and_for_all(text: str) -> None:
    once = normalize(text)
    assert normalize(once) == once
    assert not once or once.endswith((".", "!", "?", ",", ";", '"', "'", "</SE>", "</SE_e>"))
    assert all(line == " ".join(line.split()) and line for line in once.split("\n")) or once == ""
