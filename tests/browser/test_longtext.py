"""Long text, on the embedded voice: seen in pieces, followed as it is heard, and gone on with after anything."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import Locator, expect

from answers import wav_samples
from browser.accessibility import serious_problems
from browser.studio import Studio
from ears import hear_english, word_error_rate
from server_process import ServerProcess

SENTENCES = [
    "The ferry leaves at dawn, and nobody on the pier had slept that night.",
    "It was 25°C on deck 🌞 although the sun was hardly up and the sea was cold.",
    "The engine (an old one) coughed twice before it ran, and a gull flew away.",
    "We drank our coffee standing up, and then the harbour slid out of sight.",
]
TEXT = "\n\n".join(SENTENCES)
FERRY = {"name": "ferry.md", "mimeType": "text/markdown", "buffer": f"# The *ferry*\n\n{TEXT}\n".encode()}

BROKEN_OFF = """async () => {
    const { store } = await import("/studio/core/store.js");
    const [take] = await store.takes("longtext");
    await store.saveTake({ ...take, id: "later", created: take.created + 1, answer: null });
}"""
TAKES = """async () => {
    const { store } = await import("/studio/core/store.js");
    return (await store.takes("longtext")).length;
}"""


class LongText:
    """The view, as its user sees it."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.page = studio.page
        self.view = studio.view("longtext")
        self.text = self.view.locator("#longtext-text")
        self.pieces = self.view.locator(".piece")
        self.ready = self.view.locator('.piece[data-state="ready"]')
        self.heard = self.view.locator(".piece.heard")

    def click(self, name: str) -> None:
        self.view.get_by_role("button", name=name, exact=True).click()

    def plan(self, text: str = TEXT) -> None:
        """The pieces of a text, a sentence or two each."""
        self.text.fill(text)
        self.view.get_by_label("Length of the pieces").select_option("30")
        self.view.get_by_label("Voice", exact=True).select_option("belinda")
        self.click("See the pieces")
        expect(self.pieces.first).to_be_visible()

    def tools(self, number: int) -> Locator:
        self.pieces.nth(number - 1).click()
        return self.view.get_by_label("The chosen piece")

    def exported(self) -> np.ndarray:
        with self.page.expect_download() as download:
            self.click("Export WAV")
        return wav_samples(Path(download.value.path()).read_bytes())


@pytest.fixture
def longtext(studio: Studio) -> LongText:
    return LongText(studio)


def test_a_file_is_seen_in_pieces_heard_and_followed(longtext: LongText) -> None:
    longtext.view.locator("input[type=file]").set_input_files([FERRY])
    expect(longtext.text).to_have_value(f"The ferry\n\n{TEXT}")
    longtext.plan(longtext.text.input_value())
    pieces = longtext.pieces.all_text_contents()
    assert len(pieces) == 3
    assert "\n\n".join(pieces) == f"The ferry\n\n{TEXT}"
    expect(longtext.tools(2).get_by_role("textbox")).to_have_value(re.compile("25 degrees Celsius on deck 🌞"))

    longtext.click("Speak")
    for piece in pieces:  # one after another, each lit while it is what is heard
        expect(longtext.heard).to_have_text(piece, timeout=60_000)
    expect(longtext.ready).to_have_count(3)
    sound = longtext.exported()
    assert word_error_rate(longtext.text.input_value(), hear_english(sound.astype(np.float32) / 32768)) <= 0.25
    expect(longtext.heard).to_have_count(0, timeout=60_000)


def test_pieces_are_changed_and_left_out_by_pointer_and_keyboard(longtext: LongText) -> None:
    longtext.plan()
    tools = longtext.tools(1)
    tools.get_by_role("textbox").fill("Another beginning.")
    longtext.pieces.nth(0).focus()
    longtext.page.keyboard.press("ArrowDown")
    longtext.page.keyboard.press(" ")
    expect(longtext.pieces.nth(1)).to_have_attribute("data-state", "skipped")
    expect(longtext.pieces.nth(1)).to_have_attribute("aria-checked", "false")
    expect(longtext.pieces.nth(0)).to_have_attribute("aria-checked", "true")
    expect(tools.get_by_role("checkbox")).not_to_be_checked()
    longtext.click("Speak")
    expect(longtext.ready).to_have_count(longtext.pieces.count() - 1, timeout=60_000)
    assert "another beginning" in hear_english(longtext.exported().astype(np.float32) / 32768).lower()

    longtext.click("Edit the text")
    longtext.text.fill(f"{TEXT} The end.")
    longtext.click("See the pieces")
    # Pieces that say what they said keep their sound, and what was left out stays left out.
    expect(longtext.pieces.nth(1)).to_have_attribute("data-state", "skipped")


def test_pieces_of_the_same_text_keep_what_was_changed_in_them_and_every_sound(longtext: LongText) -> None:
    refrain = f"{SENTENCES[0]} {SENTENCES[3]}"
    longtext.plan("\n\n".join([refrain, SENTENCES[2], refrain]))
    expect(longtext.pieces).to_have_count(3)
    longtext.tools(2).get_by_role("textbox").fill("Another engine.")
    longtext.click("Speak")
    expect(longtext.ready).to_have_count(3, timeout=60_000)
    sound = longtext.exported()
    longtext.click("Edit the text")
    longtext.click("See the pieces")
    expect(longtext.pieces.first).to_be_visible()
    expect(longtext.pieces.nth(1)).to_have_text(SENTENCES[2])
    expect(longtext.ready).to_have_count(3)
    expect(longtext.tools(2).get_by_role("textbox")).to_have_value("Another engine.")
    assert np.array_equal(longtext.exported(), sound)


def test_a_file_in_place_of_a_text_can_be_undone(longtext: LongText) -> None:
    longtext.text.fill("Written for an hour.")
    longtext.view.locator("input[type=file]").set_input_files([FERRY])
    longtext.studio.notices.get_by_role("button", name="Undo").click()
    expect(longtext.text).to_have_value("Written for an hour.")
    longtext.studio.wait_kept("longtext", "Written for an hour.")


@pytest.fixture
def restartable() -> Iterator[Callable[[], ServerProcess]]:
    """Starts a server, again and again on one port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    running: list[ServerProcess] = []

    def start() -> ServerProcess:
        running.append(ServerProcess(["--model-path", "embedded", "--port", str(port)]).__enter__())
        running[-1].wait_ready()
        return running[-1]

    yield start
    for server in running:
        server.stop()


def test_a_server_that_restarts_in_the_middle_loses_nothing(
    open_studio: Callable[..., Studio], restartable: Callable[[], ServerProcess]
) -> None:
    server = restartable()
    studio = open_studio(server)
    studio.expects_failures = True
    studio.open()
    longtext = LongText(studio)
    longtext.plan()
    count = longtext.pieces.count()
    asked: list[str] = []

    def kill_before_the_second(route: Any) -> None:
        asked.append(route.request.post_data_json["text"])
        if len(asked) == 2:
            server.process.kill()
            server.process.wait()
        route.continue_()

    studio.page.route("**/generate-stream", kill_before_the_second)
    longtext.click("Speak")
    expect(studio.page.locator(".notice.problem")).to_contain_text(re.compile("does not answer|broke off"))
    expect(longtext.ready).to_have_count(1)
    restartable()
    studio.wait_ready()
    studio.page.locator(".notice.problem").get_by_role("button", name="Go on").click()
    expect(longtext.ready).to_have_count(count, timeout=60_000)
    assert len(asked) == count + 1
    assert asked[1] == asked[2]

    studio.open("longtext")  # and after a reload all of it is there
    expect(longtext.ready).to_have_count(count)
    longtext.click("Play all")
    expect(longtext.heard).to_have_text(longtext.pieces.first.text_content() or "")
    assert len(asked) == count + 1


def test_what_the_server_refuses_is_told_before_anything_is_made(longtext: LongText) -> None:
    longtext.studio.expects_failures = True
    longtext.text.fill("[SPEAKER0] One.\n[SPEAKER1] Two.")
    longtext.view.get_by_label("Voice", exact=True).select_option("belinda")
    longtext.click("Speak")
    expect(longtext.page.locator(".notice.problem")).to_contain_text("[SPEAKER1]")
    expect(longtext.pieces).to_have_count(0)


def test_a_take_that_cannot_be_made_anew_stays(longtext: LongText) -> None:
    longtext.plan(SENTENCES[0])
    longtext.click("Speak")
    expect(longtext.ready).to_have_count(1, timeout=60_000)
    sound = longtext.exported()
    tools = longtext.tools(1)
    words = tools.get_by_role("textbox").input_value()
    longtext.studio.expects_failures = True
    longtext.page.route("**/generate-stream", lambda route: route.abort())
    tools.get_by_role("textbox").fill("Never made.")
    tools.get_by_role("button", name="Make again").click()
    expect(longtext.page.locator(".notice.problem")).to_contain_text("does not answer")
    tools.get_by_role("textbox").fill(words)
    expect(longtext.ready).to_have_count(1)
    assert np.array_equal(longtext.exported(), sound)
    # The page was closed while a new one was made.
    longtext.page.evaluate(BROKEN_OFF)
    longtext.studio.open("longtext")
    expect(longtext.ready).to_have_count(1)
    assert np.array_equal(longtext.exported(), sound)
    assert longtext.page.evaluate(TAKES) == 1


@pytest.mark.parametrize("duplicated", [False, True])
def test_two_tabs_keep_each_others_takes(longtext: LongText, duplicated: bool) -> None:
    studio = longtext.studio
    longtext.plan("The first tab.")
    longtext.click("Speak")
    expect(longtext.ready).to_have_count(1, timeout=60_000)
    if duplicated:
        studio.duplicate()
    else:
        studio.page = studio.context.new_page()
        studio.open("longtext")
    other = LongText(studio)
    expect(other.ready).to_have_count(1)
    other.click("Edit the text")
    other.plan("The second tab.")
    other.click("Speak")
    expect(other.ready).to_have_count(1, timeout=60_000)
    for tab in (longtext, other, longtext):
        tab.page.reload()
        expect(tab.ready).to_have_count(1)
    assert (longtext.pieces.all_text_contents(), other.pieces.all_text_contents()) == (
        ["The first tab."],
        ["The second tab."],
    )


def test_pieces_stand_where_their_words_are_after_white_space(longtext: LongText) -> None:
    longtext.plan(f"\n\n　　你好。\n\n{TEXT}")
    pieces = longtext.pieces.all_text_contents()
    assert "\n\n".join(pieces) == f"你好。\n\n{TEXT}"


def test_a_text_longer_than_one_plan_is_planned_in_parts(longtext: LongText, server: ServerProcess) -> None:
    text = "\n\n".join(f"{n}. {sentence}" for n in range(130) for sentence in SENTENCES)
    assert len(text) > 20_000
    longtext.plan(text)
    pieces = longtext.pieces.all_text_contents()
    assert "".join("".join(pieces).split()) == "".join(text.split())
    plan = httpx.post(f"{server.url}/plan", json={"text": text, "chunk_method": "word", "chunk_max_word_num": 30})
    assert abs(len(plan.raise_for_status().json()["chunks"]) - len(pieces)) <= 3


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_serious_problem_of_accessibility(longtext: LongText, theme: Any) -> None:
    longtext.page.emulate_media(color_scheme=theme)
    assert serious_problems(longtext.page) == []
    longtext.plan()
    longtext.tools(1)
    longtext.page.keyboard.press("Enter")
    expect(longtext.heard).to_have_count(1)
    assert serious_problems(longtext.page) == []
    longtext.page.get_by_role("button", name="Switch to Chinese").click()
    longtext.page.set_viewport_size({"width": 390, "height": 844})
    longtext.pieces.nth(1).click()
    assert serious_problems(longtext.page) == []
    assert longtext.page.evaluate("document.documentElement.scrollWidth") <= 390
