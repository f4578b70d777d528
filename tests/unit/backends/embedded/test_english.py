from __future__ import annotations

import threading

import pytest

from higgs_server.backends.embedded.english import phonemize_english


def us(text: str) -> str:
    return phonemize_english(text, british=False)


def test_american_and_british() -> None:
    assert us("Hello there.") == "həlˈO ðˈɛɹ."
    assert phonemize_english("Hello there.", british=True) == "həlˈQ ðˈɛː."


def test_a_text_cannot_set_its_own_phonemes() -> None:
    assert "kˈæt" not in us("[dog](/kˈæt/)")
    assert us("[dog](/kˈæt/)").startswith("(dˈ")
    assert us("[hello] {world}") == "(həlˈO) (wˈɜɹld)"


@pytest.mark.parametrize(
    "text", ["Москва", "Ελλάδα", "こんにちは", "コーヒー", "안녕하세요", "İstanbul", "Łódź", "Nguyễn", "Zoë"]
)
def test_words_in_other_alphabets_are_heard(text: str) -> None:
    assert sum(character.isalpha() for character in us(text)) >= 4


def test_a_greek_letter_alone_is_named() -> None:
    assert us("π") == us("pie")


@pytest.mark.parametrize(
    ("text", "spoken"),
    [("きょう", "kyou"), ("がっこう", "gakou"), ("すし", "sushi"), ("Жуков", "Zhukov"), ("ёлка", "yolka")],
)
def test_foreign_words_are_read_by_their_romanisation(text: str, spoken: str) -> None:
    assert us(text) == us(spoken)


def test_long_words_and_numbers_are_said_to_the_end() -> None:
    assert us("ab" * 12 + "cd" * 12) == us("ab" * 12) + " " + us("cd" * 12)
    assert us("7" * 40).split() == [us("7")] * 40


@pytest.mark.parametrize("text", ["a word 5①你 here", "a word x5é'İ here"])
def test_what_hibari_fails_on_costs_one_word(text: str) -> None:
    phonemes = us(text)
    assert phonemes.startswith(us("a word"))
    assert phonemes.endswith(us("here"))


def test_a_lone_capital_a_is_a_letter() -> None:
    assert us("A") == "ˈA"
    assert us("A dog") == us("a dog")


@pytest.mark.parametrize("british", [False, True])
@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("PLEASE DO NOT FEED THE ANIMALS.", "please do not feed the animals."),
        ("WE SOLD ALL THE BOOKS.", "we sold all the books."),
        ("IT IS CLEAR TO US.", "it is clear to us."),
        ("MARY'S ROADS ARE CLOSED.", "mary's roads are closed."),
        ("The BOOKS are new.", "The books are new."),
    ],
)
def test_words_in_capitals_are_words(text: str, spoken: str, british: bool) -> None:
    assert phonemize_english(text, british=british) == phonemize_english(spoken, british=british)


def test_abbreviations_are_spelled() -> None:
    assert us("I work for IBM.").endswith("ˌIbˌiˈɛm.")
    assert us("THE FBI AND IBM WORK.").count("ˌIbˌiˈɛm") == 1
    assert "jˌuˈɛs" in us("The US and the IT desk.")
    assert "ˌItˈi" in us("The US and the IT desk.")


@pytest.mark.parametrize("text", ["", " ", "🙂", "\u0301", "\ud800", "{}[]|", "こ゚ー"])
def test_odd_texts_are_read(text: str) -> None:
    assert isinstance(us(text), str)


def test_threads_agree() -> None:
    texts = [f"Sentence number {n} about Qwertzuiop{n * 'x'}." for n in range(8)]
    alone = [us(text) for text in texts]
    together: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda n=n, text=text: together.update({n: us(text)})) for n, text in enumerate(texts)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[n] for n in range(8)] == alone
