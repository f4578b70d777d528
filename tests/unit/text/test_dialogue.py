"""Turns of a dialogue."""

from __future__ import annotations

import pytest

from higgs_server.text.dialogue import Turn, canonical_tags, parse_turns, speakers, turns_as_lines
from higgs_server.text.traced import Traced


def test_turns_on_their_own_lines() -> None:
    assert parse_turns("[SPEAKER0] Hi Bob.\n[SPEAKER1] Hi Alice!\nHow are you?") == [
        Turn(0, "Hi Bob."),
        Turn(1, "Hi Alice!\nHow are you?"),
    ]


def test_several_turns_on_one_line_and_text_before_the_first() -> None:
    assert parse_turns("Intro. [SPEAKER1]一 [SPEAKER0] two [SPEAKER1] three") == [
        Turn(None, "Intro."),
        Turn(1, "一"),
        Turn(0, "two"),
        Turn(1, "three"),
    ]


def test_empty_turns_are_dropped() -> None:
    assert parse_turns("[SPEAKER0] \n[SPEAKER1] hi [SPEAKER2]") == [Turn(1, "hi")]
    assert parse_turns(" \n") == []


def test_plain_text_is_one_turn_of_nobody() -> None:
    assert parse_turns(" Hello. ") == [Turn(None, "Hello.")]
    assert Turn(None, "Hello.").tagged == "Hello."
    assert Turn(3, "Hello.").tagged == "[SPEAKER3] Hello."


@pytest.mark.parametrize("written", ["[SPEAKER7]", "[speaker7]", "[Speaker 7]", "[ SPEAKER 07 ]", "[SPEAKER７]"])
def test_spellings_of_a_tag(written: str) -> None:
    assert canonical_tags(Traced.of(f"{written} hi")).text == "[SPEAKER7] hi"
    assert speakers(f"{written} hi") == [7]


@pytest.mark.parametrize("text", ["SPEAKER0: hi", "[SPEAKER] hi", "[SPEAKERS0] hi", "[SPEAKER" + "9" * 5000 + "] hi"])
def test_what_is_no_tag(text: str) -> None:
    assert speakers(text) == []
    assert parse_turns(text) == [Turn(None, text)]


def test_speakers_are_sorted_as_numbers_each_once() -> None:
    assert speakers("[SPEAKER10] a [SPEAKER2] b [SPEAKER10] c") == [2, 10]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n ",
        "Intro. [speaker 1]一 [SPEAKER0]\n[SPEAKER0] two\nmore  [SPEAKER1] three [SPEAKER2] ",
        "[SPEAKER0] [SPEAKER1][SPEAKER2]",
        "\u3000[SPEAKER0]\x1fhi",
    ],
)
def test_turns_as_lines_are_the_turns(text: str) -> None:
    assert turns_as_lines(Traced.of(text)).text.strip() == "\n".join(turn.tagged for turn in parse_turns(text))
