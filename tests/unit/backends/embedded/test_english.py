from __future__ import annotations

import threading
import time

import pytest

from higgs_server.backends.embedded.english import phonemize_english
from higgs_server.backends.embedded.english_numbers import respell_numbers


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


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("It costs $3.5.", "It costs three dollars and fifty cents."),
        ("It costs $3.5 million.", "It costs 3.5 million dollars."),
        ("It costs -$5 or US$5.", "It costs minus five dollars or US five dollars."),
        ("Your code is 048213.", "Your code is 0 4 8 2 1 3."),
        ("Your code is 2018.", "Your code is 2 0 1 8."),
        ("Your code is 1234.", "Your code is 1 2 3 4."),
        ("Flight 007 left.", "Flight 0 0 7 left."),
        ("Call +44 20 7946 0958.", "Call plus 4 4, 2 0, 7 9 4 6, 0 9 5 8."),
        ("Call 555-123-4567.", "Call 5 5 5, 1 2 3, 4 5 6 7."),
        ("Call 1-800-555-0199 now.", "Call 1, 8 0 0, 5 5 5, 0 1 9 9 now."),
        ("Call 0800 123 456.", "Call 0 8 0 0, 1 2 3, 4 5 6."),
        ("Call 5551234567.", "Call 5 5 5 1 2 3 4 5 6 7."),
        ("Call 555-0199.", "Call 5 5 5, 0 1 9 9."),
        ("Earth is 4500000000 years old.", "Earth is four billion five hundred million years old."),
        ("Write 500-1000 words.", "Write five hundred to one thousand words."),
        ("It costs $5–$10.", "It costs five to ten dollars."),
        ("It costs £10-20.", "It costs ten to twenty pounds."),
        ("It made $1.5 to $2.5 million.", "It made 1.5 to 2.5 million dollars."),
        ("I paid $5 to 3 people.", "I paid five dollars to three people."),
        ("See pages 10-12.", "See pages ten to twelve."),
        ("Open 9:00-17:00.", "Open 9:00 to 17:00."),
        ("Open 9:00 - 17:00.", "Open 9:00 to 17:00."),
        ("It made $1.5M - $2M.", "It made $1.5M to $2M."),
        ("I give it 10/10 today.", "I give it ten ten today."),
        ("Open 9am-5pm.", "Open nine A.M. to 5pm."),
        ("It lasted 2019-2024.", "It lasted 2019 to 2024."),
        ("About 5%-10% or 1.5-2.5kg.", "About five percent to ten percent or 1.5 to 2.5kg."),
        ("About ~50 people.", "About about fifty people."),
        ("So 10-3=7.", "So ten minus three equals seven."),
        ("He ate 3/4.", "He ate three quarters."),
        ("Take 1 1/2 cups.", "Take one and one half cups."),
        ("It is version 2.0.", "It is version two point 0."),
        ("Share it 50-50.", "Share it 50 50."),
        ("Open 24/7 for you.", "Open 24 7 for you."),
        ("He is 5'11\" tall.", "He is five foot eleven tall."),
        ("Get v2.0.1 now.", "Get v2 point zero point one now."),
    ],
)
def test_numbers_are_read_as_people_say_them(text: str, spoken: str) -> None:
    assert us(text) == us(spoken)


@pytest.mark.parametrize(
    "text",
    [
        "On 2024-12-25 COVID-19 met GPT-4 at 09:30.",
        "On 01/02/2024 and 25.12.2024 it was 0.5 of 1,234,567.89.",
        "On 06 June 2024 a 10-year-old won 3-2 in F-16s.",
        "The 1990s, 50%, 2.5kg, 25°C, 100km/h, #1 and No. 5.",
        "It costs $3.50, or $1.2M.",
        "Add +10 20 or 100 200 300.",
        "By 2030 2/3 of people left.",
        "Jackets $100 - 20% off, rooms for $80 - 2 nights, phone 15 - 20% off, plan 1 - $20, or 50% - 2 days.",
        "The penal code 1860 and the building code 2018 apply.",
    ],
)
def test_what_hibari_reads_right_stays(text: str) -> None:
    assert respell_numbers(text).replace(" .", ".") == text.replace("3-2", "3 to 2")


def test_the_time_grows_with_the_length() -> None:
    start = time.perf_counter()
    for text in ("1" * 20_000, "0" * 20_000, "1-" * 10_000, "$1" * 10_000, "1." * 10_000, "+1 " * 7_000, "1 " * 10_000):
        respell_numbers(text)
    assert time.perf_counter() - start < 5


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
