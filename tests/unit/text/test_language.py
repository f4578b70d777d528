from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from higgs_server.text.language import dominant_language, split_languages, written_language

MIXED = st.text(st.sampled_from("ab é中文，。 \n3.5%-¥(“”):km°Cя🙂"), max_size=60)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("Hello, world!", [("en", "Hello, world!")]),
        ("你好，世界！", [("zh", "你好，世界！")]),
        ("我有3个apple", [("zh", "我有3个"), ("en", "apple")]),
        ("2024年3月5日，涨了3.5%。", [("zh", "2024年3月5日，涨了3.5%。")]),
        ("3.14", [("en", "3.14")]),
        ("，。", [("en", "，。")]),
        ("I ran 5km in 2024.", [("en", "I ran 5km in 2024.")]),
        ("我跑了5km，喝了500 ml水，25°C。", [("zh", "我跑了5km，喝了500 ml水，25°C。")]),
        ("高32 degrees Celsius, 低-4 degrees Celsius.", [("zh", "高32 degrees Celsius, 低-4 degrees Celsius.")]),
        ("It is 25 degrees Celsius.", [("en", "It is 25 degrees Celsius.")]),
        ("我有5kids", [("zh", "我有5"), ("en", "kids")]),
        ("iPhone 15很好", [("en", "iPhone 15"), ("zh", "很好")]),
        ("用iPhone15拍照", [("zh", "用"), ("en", "iPhone15"), ("zh", "拍照")]),
        ("GPT-4很好", [("en", "GPT-4"), ("zh", "很好")]),
        ("Python，3年了", [("en", "Python，"), ("zh", "3年了")]),
        ("Python 3年了", [("en", "Python "), ("zh", "3年了")]),
        ("iPhone卖¥5,999。", [("en", "iPhone"), ("zh", "卖¥5,999。")]),
        ("CPU：-5度", [("en", "CPU："), ("zh", "-5度")]),
        ("你好（hello）世界", [("zh", "你好"), ("en", "（hello）"), ("zh", "世界")]),
        ("3 apples很多", [("en", "3 apples"), ("zh", "很多")]),
        ("café很好", [("en", "café"), ("zh", "很好")]),
        ("𠮷野家 and 〇", [("zh", "𠮷野家 "), ("en", "and "), ("zh", "〇")]),
    ],
)
def test_each_part_has_one_language(text: str, parts: list[tuple[str, str]]) -> None:
    assert split_languages(text) == parts


def test_a_text_without_letters_is_in_the_default_language() -> None:
    assert split_languages("110。", "zh") == [("zh", "110。")]


@settings(derandomize=True, max_examples=300, deadline=None)
@given(MIXED | st.text(max_size=40))
def test_joined_parts_are_the_text_and_alternate(text: str) -> None:
    parts = split_languages(text)
    assert "".join(part for _, part in parts) == text
    assert all(part for _, part in parts)
    assert all(one != other for (one, _), (other, _) in pairwise(parts))


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("", "en"),
        ("2024", "en"),
        ("你好", "zh"),
        ("我喜欢 machine learning", "zh"),
        ("The word 你好 means hello", "en"),
        ("这台MacBook Pro很快，可以运行Transformers。", "zh"),
        ("Beijing (北京) is the capital of China.", "en"),
    ],
)
def test_the_dominant_language_has_most_words(text: str, language: str) -> None:
    assert dominant_language(text) == language


@pytest.mark.parametrize("piece", ["a 1", "我a", "(((", "1,", "   ", "1 中"])
def test_long_texts_take_linear_time(piece: str) -> None:
    started = time.process_time()
    split_languages(piece * (200_000 // len(piece)))
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Hello, world!", "en"),
        ("Zoë's café, 3 p.m.", "en"),
        ("你好。", "zh"),
        ("我有3个apple", "zh"),
        ("Привет", None),
        ("こんにちは、世界", None),
        ("안녕하세요", None),
        ("مرحبا", None),
        ("3.14!", None),
        ("", None),
    ],
)
def test_what_a_text_is_written_in(text: str, language: str | None) -> None:
    assert written_language(text) == language
