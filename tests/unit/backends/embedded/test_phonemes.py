from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from higgs_server.backends.embedded.phonemes import MAX_TOKENS, phonemize, split_phonemes, to_ids, vocabulary


def test_mixed_text_is_one_string() -> None:
    assert phonemize("你好 world，再见！") == "ni↓xau↓ wˈɜɹld, ʦai↘ʨjɛ↘n!"
    assert phonemize("我有3个apple。") == phonemize("我有三个") + " " + phonemize("apple.")


def test_british_reads_english_and_leaves_chinese() -> None:
    assert phonemize("你好", british=True) == phonemize("你好")
    assert phonemize("hello", british=True) == "həlˈQ"


def test_full_width_text_reads_like_half_width() -> None:
    assert phonemize("Ａｐｐｌｅ　１２３！") == phonemize("Apple 123!")
    assert phonemize("你好，世界。") == phonemize("你好,世界.") == "ni↓xau↓, ʂɨ↘ ʨje↘."


@pytest.mark.parametrize(
    ("text", "phonemes"),
    [
        ("好、好；好？好！", "xau↓, xau↓; xau↓? xau↓!"),
        ("《好》“好”（好）", "“xau↓” “xau↓” (xau↓)"),
        ("好……好——好", "xau↓… xau↓—xau↓"),
        ("说：“好”", "ʂwo→: “xau↓”"),
        ("好。。。", "xau↓…"),
        ("好！！！", "xau↓!"),
        ("比尔·盖茨", "pi↓ ɚ↓ kai↘ ʦʰɨ↗"),
    ],
)
def test_chinese_punctuation(text: str, phonemes: str) -> None:
    assert phonemize(text) == phonemes


def test_what_normalisation_made_of_a_dash_is_a_pause_again() -> None:
    assert phonemize("好--好") == "xau↓—xau↓"
    for dash in (" - ", "--", " -- "):
        assert phonemize(f"The rate{dash}a key figure{dash}fell.").count("—") == 2
    for text in ("It is well-known.", "See pages 10 - 12."):
        assert "—" not in phonemize(text)


def test_numbers_are_read_in_the_language_they_stand_in() -> None:
    assert phonemize("价格是100元") == phonemize("价格是一百元")
    assert phonemize("100") == phonemize("one hundred")
    assert phonemize("100", default="zh") == phonemize("一百")
    assert phonemize("١٢٣") == phonemize("123")


def test_sound_events_are_not_spoken() -> None:
    for event in ("<SE>[Laughter]</SE>", "<SE_s>[Music]</SE_s>", "<SE_e>[Music]</SE_e>", "<SE>", "</SE_s>"):
        assert phonemize(f"{event}Hello {event} there.{event}") == phonemize("Hello there.")
        assert phonemize(event) == ""


@pytest.mark.parametrize("text", ["", " \n", "🙂🙂", "……", "，。！", "()", "\u200b", "\ud800"])
def test_nothing_to_say(text: str) -> None:
    assert phonemize(text) == ""


@settings(derandomize=True, max_examples=150, deadline=None)
@given(
    st.text(max_size=40)
    | st.text(st.sampled_from("ab A'-.,%$€¥°0123456789:/=½²①Ⅳé中文个年月İЖこ你🙂\u0301[](){}<>…—“” "), max_size=40)
)
def test_any_text_gives_symbols_of_the_vocabulary(text: str) -> None:
    phonemes = phonemize(text)
    assert set(phonemes) <= vocabulary().keys()
    assert len(to_ids(phonemes)) == len(phonemes)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.text(st.sampled_from("abˈ↗  .,!?—"), max_size=300), st.integers(1, 60))
def test_pieces_join_to_the_whole(phonemes: str, limit: int) -> None:
    pieces = split_phonemes(phonemes, limit)
    assert "".join(pieces) == phonemes
    assert all(0 < len(piece) <= limit for piece in pieces)


def test_cut_at_the_end_of_a_sentence_then_a_clause_then_a_word() -> None:
    assert split_phonemes("aaaa aaaa. bbbb, bbbb bb", 20) == ["aaaa aaaa. ", "bbbb, bbbb bb"]
    assert split_phonemes("aaaa aaaa, bbbb bbbb bb", 20) == ["aaaa aaaa, ", "bbbb bbbb bb"]
    assert split_phonemes("aaaa aaaa bbbb bbbb bbbb", 21) == ["aaaa aaaa bbbb bbbb ", "bbbb"]
    assert split_phonemes("a" * 25, 20) == ["a" * 20, "a" * 5]
    assert split_phonemes("") == []


def test_a_long_text_fits_the_model() -> None:
    phonemes = phonemize("今天天气很好，我们一起去公园散步吧。" * 20)
    pieces = split_phonemes(phonemes)
    assert len(pieces) > 1
    assert all(len(to_ids(piece)) <= MAX_TOKENS and piece.rstrip()[-1] == "." for piece in pieces)


@pytest.mark.parametrize("piece", ["a", "1", "1,", "中", "(", ". ", "1-", "<SE>", "[a](", "-1"])
def test_repetition_takes_no_quadratic_time(piece: str) -> None:
    started = time.process_time()
    phonemize(piece * (1000 // len(piece)))
    assert time.process_time() - started < 5
