"""Dialogue, on the embedded voice: from a pasted script to one sound, and nothing of it lost."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Locator, Route, expect

from answers import wav_samples
from browser.accessibility import serious_problems
from browser.studio import Studio
from ears import hear_english, word_error_rate
from server_process import ServerProcess

SCRIPT = "Anna: Is the ferry late again?\nBob: It left at dawn.\nAnna: Then we will have to walk."
PASTE = """text => {
    const data = new DataTransfer();
    data.setData("text/plain", text);
    const paste = new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
    document.activeElement.dispatchEvent(paste);
}"""


class Dialogue:
    """The view, as its user sees it."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.page = studio.page
        self.view = studio.view("dialogue")
        self.lines = self.view.locator(".line")
        self.ready = self.view.locator('.line[data-state="ready"]')

    def line(self, number: int) -> Locator:
        """What is said in a line."""
        return self.view.get_by_role("textbox", name=f"Line {number}", exact=True)

    def texts(self) -> list[str]:
        return [text.input_value() for text in self.view.locator(".line-text").all()]

    def paste(self, script: str, number: int = 1) -> None:
        self.line(number).focus()
        self.page.evaluate(PASTE, script)

    def one_voice(self) -> None:
        """Everybody has the voice that is quick to speak."""
        for select in self.view.get_by_label(re.compile("^Voice of")).all():
            select.select_option("belinda")

    def click(self, name: str) -> None:
        self.view.get_by_role("button", name=name, exact=True).click()

    def make(self) -> None:
        lines = sum(bool(text.strip()) for text in self.texts())
        self.click("Make what is missing")
        expect(self.ready).to_have_count(lines, timeout=60_000)

    def project(self, item: str) -> None:
        self.view.locator(".deck summary").click()
        self.click(item)

    def downloaded(self, act: Any) -> bytes:
        with self.page.expect_download() as download:
            act()
        return Path(download.value.path()).read_bytes()

    def exported(self) -> np.ndarray:
        return wav_samples(self.downloaded(lambda: self.click("Export WAV")))


@pytest.fixture
def dialogue(studio: Studio) -> Dialogue:
    return Dialogue(studio)


def test_a_pasted_script_is_made_heard_line_by_line_and_exported(dialogue: Dialogue) -> None:
    dialogue.paste(SCRIPT)
    assert dialogue.texts() == ["Is the ferry late again?", "It left at dawn.", "Then we will have to walk."]
    selects = dialogue.view.get_by_label(re.compile("^Voice of (Anna|Bob)$"))
    expect(selects).to_have_count(2)
    expect(selects.last).not_to_have_value("")
    assert selects.first.input_value() != selects.last.input_value()
    dialogue.one_voice()
    dialogue.make()
    sound = dialogue.exported()
    assert word_error_rate(" ".join(dialogue.texts()), hear_english(sound.astype(np.float32) / 32768)) <= 0.2

    dialogue.line(2).focus()
    pause = dialogue.view.get_by_label("Pause after it")
    pause.fill("2.3")
    pause.blur()
    assert len(dialogue.exported()) - len(sound) == 2 * 24_000

    dialogue.click("Play all")
    expect(dialogue.lines.nth(0)).to_have_class(re.compile("heard"))
    expect(dialogue.lines.nth(1)).to_have_class(re.compile("heard"), timeout=20_000)
    expect(dialogue.lines.nth(0)).not_to_have_class(re.compile("heard"))


def test_a_line_has_takes_and_one_of_them_counts(dialogue: Dialogue) -> None:
    dialogue.line(1).fill("A short one.")
    dialogue.one_voice()
    dialogue.line(1).press("Control+Enter")
    expect(dialogue.ready).to_have_count(1)
    short = len(dialogue.exported())
    again = dialogue.view.get_by_role("button", name="Make again")
    expect(again).to_be_disabled()  # the embedded voice would say the same
    dialogue.line(1).fill("This one is a good deal longer than the first.")
    expect(dialogue.lines).to_have_attribute("data-state", "changed")
    again.click()
    expect(dialogue.ready).to_have_count(1)
    assert len(dialogue.exported()) > 1.5 * short
    dialogue.view.get_by_role("radio", name="Take 1").check()
    assert len(dialogue.exported()) == short

    dialogue.studio.expects_failures = True
    dialogue.page.route("**/generate-stream", lambda route: route.abort())
    dialogue.line(1).fill("This one is never made.")
    again.click()
    expect(dialogue.page.locator(".notice.problem")).to_contain_text("does not answer")
    expect(dialogue.view.get_by_role("radio", name="Take 1")).to_be_checked()  # it still counts
    dialogue.line(1).fill("A short one.")
    expect(dialogue.ready).to_have_count(1)

    dialogue.view.locator(".tools summary").click()
    expect(dialogue.view.get_by_role("button", name="[laugh]")).to_be_disabled()
    expect(dialogue.view.get_by_text("makes no sounds but words")).to_be_visible()


def test_lines_are_written_moved_and_deleted_by_keyboard_and_pointer_and_brought_back(dialogue: Dialogue) -> None:
    dialogue.line(1).fill("One")
    dialogue.line(1).press("Enter")
    dialogue.page.keyboard.type("Two")
    dialogue.page.keyboard.press("Enter")
    dialogue.page.keyboard.type("Three")
    dialogue.page.keyboard.press("Alt+ArrowUp")
    assert dialogue.texts() == ["One", "Three", "Two"]
    expect(dialogue.line(2)).to_be_focused()
    dialogue.view.get_by_role("button", name="Tools of line 3").drag_to(dialogue.line(1))
    assert dialogue.texts() == ["Two", "One", "Three"]
    dialogue.line(2).press("Control+A")
    dialogue.page.keyboard.press("Backspace")
    dialogue.page.keyboard.press("Backspace")
    assert dialogue.texts() == ["Two", "Three"]
    dialogue.page.locator(".notice").or_(dialogue.view).get_by_role("button", name="Undo").first.click()
    assert dialogue.texts() == ["Two", "", "Three"]
    dialogue.project("New dialogue")
    assert dialogue.texts() == [""]
    dialogue.page.locator(".notice").get_by_role("button", name="Undo").last.click()
    dialogue.view.get_by_role("button", name="Tools of line 1").press("Enter")
    dialogue.click("Delete the line")
    dialogue.page.locator(".notice").get_by_role("button", name="Undo").click()
    assert dialogue.texts() == ["Two", "", "Three"]


def test_what_fails_stops_there_and_is_gone_on_with_also_after_a_reload(dialogue: Dialogue) -> None:
    dialogue.paste("[SPEAKER0] First.\n[SPEAKER0] Second.\n[SPEAKER0] Third.")
    dialogue.one_voice()
    dialogue.studio.expects_failures = True
    asked = []

    def break_off_the_second(route: Route) -> None:
        asked.append(route.request.post_data_json["text"])
        route.abort() if len(asked) == 2 else route.continue_()

    dialogue.page.route("**/generate-stream", break_off_the_second)
    dialogue.click("Make what is missing")
    expect(dialogue.page.locator(".notice.problem")).to_contain_text("does not answer")
    expect(dialogue.ready).to_have_count(1)
    dialogue.studio.open("dialogue")
    expect(dialogue.ready).to_have_count(1)
    assert dialogue.texts() == ["First.", "Second.", "Third."]
    dialogue.make()
    assert asked == ["First.", "Second.", "Second.", "Third."]


@pytest.mark.parametrize("duplicated", [False, True])
def test_two_tabs_keep_each_others_takes(dialogue: Dialogue, duplicated: bool) -> None:
    studio = dialogue.studio
    dialogue.line(1).fill("The first tab.")
    dialogue.one_voice()
    dialogue.make()
    if duplicated:
        studio.duplicate()
    else:
        studio.page = studio.context.new_page()
        studio.open("dialogue")
    other = Dialogue(studio)
    expect(other.ready).to_have_count(1)
    other.project("New dialogue")
    other.line(1).fill("The second tab.")
    other.make()
    for tab in (dialogue, other, dialogue):
        tab.page.reload()
        expect(tab.ready).to_have_count(1)
    assert (dialogue.texts(), other.texts()) == (["The first tab."], ["The second tab."])


def test_a_voice_that_the_model_cannot_speak_with_is_not_taken(
    open_studio: Callable[..., Studio], server: ServerProcess
) -> None:
    def with_one_of_ones_own(route: Route) -> None:
        voices = route.fetch().json()["voices"]
        mine = {**voices[0], "id": "mine", "name": "mine", "language": "en", "read_only": False}
        route.fulfill(json={"voices": [mine, *voices]})

    studio = open_studio(server)
    studio.page.route("**/v1/audio/voices", with_one_of_ones_own)
    studio.open("dialogue")
    for view, label in (("dialogue", "Voice of Speaker 1"), ("longtext", "Voice")):
        select = studio.view(view).get_by_label(label, exact=True)
        expect(select).to_have_value(re.compile("^(?!mine$).+"))
        expect(select.locator("option[value=mine]")).to_be_disabled()
        expect(select.locator("option[value=mine]")).to_have_text("mine (needs Higgs Audio v2)")


def test_a_project_is_a_file_that_opens_elsewhere(
    dialogue: Dialogue, open_studio: Callable[..., Studio], server: ServerProcess
) -> None:
    dialogue.paste("[SPEAKER0] Saved.\n[SPEAKER1] And opened.")
    dialogue.one_voice()
    dialogue.make()
    sound = dialogue.exported()
    saved = dialogue.downloaded(lambda: dialogue.project("Save to a file"))
    assert json.loads(saved)["version"] == 1

    elsewhere = open_studio(server)
    elsewhere.open()
    other = Dialogue(elsewhere)
    project = {"name": "dialogue.json", "mimeType": "application/json", "buffer": saved}
    other.view.locator("input[type=file]").set_input_files([project])
    expect(other.ready).to_have_count(2)
    assert other.texts() == ["Saved.", "And opened."]
    assert np.array_equal(other.exported(), sound)
    elsewhere.open("dialogue")
    expect(other.ready).to_have_count(2)
    assert np.array_equal(other.exported(), sound)


def spoilt(**changes: Any) -> bytes:
    line = {"speaker": "a", "text": "Hi.", "pause": 0.3, "takes": [], **changes.pop("line", {})}
    project = {"format": "higgs-studio-dialogue", "version": 1, "speakers": [{"id": "a", "name": "A", "voice": None}]}
    return json.dumps({**project, "values": {}, "lines": [line], **changes}).encode()


TAKE = {"name": "t", "request": {"text": "Hi."}, "answer": None, "audio": "AAAA", "chosen": True}


def test_a_file_that_is_no_project_changes_nothing(dialogue: Dialogue) -> None:
    dialogue.line(1).fill("Still here.")
    for content, complaint in (
        (b"\x00\x01", "not a dialogue"),
        (b"[]", "not a dialogue"),
        (spoilt(format="other"), "not a dialogue"),
        (spoilt(version=2), "newer studio"),
        (spoilt(values={"temperature": "hot"}), "values.temperature"),
        (spoilt(speakers=[{"id": "a", "name": {"toString": 1}, "voice": None}]), "speakers[0]"),
        (spoilt(line={"speaker": "__proto__"}), "lines[0].speaker"),
        (spoilt(line={"pause": 1e9}), "lines[0]"),
        (spoilt(line={"text": None}), "lines[0]"),
        (spoilt(line={"takes": [{**TAKE, "audio": "A"}]}), "lines[0].takes.audio"),
        (spoilt(line={"takes": [{**TAKE, "request": {"text": "x", "seed": "1"}}]}), "lines[0].takes.seed"),
    ):
        hostile = {"name": "hostile.json", "mimeType": "application/json", "buffer": content}
        dialogue.view.locator("input[type=file]").set_input_files([hostile])
        notice = dialogue.page.locator(".notice.problem").filter(has_text=complaint)
        notice.get_by_role("button", name="Dismiss").click()
        assert dialogue.texts() == ["Still here."]


def test_four_hundred_lines_stay_fluid(dialogue: Dialogue) -> None:
    dialogue.paste("\n".join(f"[SPEAKER{n % 4}] This is what is said in line {n}." for n in range(400)))
    expect(dialogue.lines).to_have_count(400)
    expect(dialogue.line(400)).to_be_focused()
    dialogue.page.evaluate(
        """() => {
            window.slow = [];
            new PerformanceObserver((list) => window.slow.push(...list.getEntries().map(({ duration }) => duration)))
                .observe({ type: "event", durationThreshold: 16 });
            window.touched = 0;
            const elsewhere = ({ target }) => target.closest?.(".line")?.dataset.number !== "200";
            new MutationObserver((changes) => (window.touched += changes.filter(elsewhere).length))
                .observe(document.querySelector(".script"), { childList: true, subtree: true, attributes: true });
        }"""
    )
    dialogue.line(200).click()
    dialogue.page.evaluate("window.touched = 0")
    dialogue.page.keyboard.type(" And more, typed quickly.")
    assert dialogue.line(200).input_value().endswith(" And more, typed quickly.")
    # A key changes its own line and no other; only lines near the screen are laid out at all.
    assert dialogue.page.evaluate("window.touched") == 0
    assert dialogue.lines.first.evaluate("line => getComputedStyle(line).contentVisibility") == "auto"
    dialogue.page.keyboard.press("Enter")
    expect(dialogue.lines).to_have_count(401)
    expect(dialogue.line(201)).to_be_focused()
    dialogue.page.keyboard.press("Alt+ArrowDown")
    dialogue.page.mouse.wheel(0, 4_000)
    # Generous: no key may take as long as one can feel, even on a busy machine.
    assert max(dialogue.page.evaluate("window.slow"), default=0) < 2_000


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_serious_problem_of_accessibility(dialogue: Dialogue, theme: Any) -> None:
    dialogue.page.emulate_media(color_scheme=theme)
    dialogue.paste(SCRIPT)
    dialogue.one_voice()
    dialogue.line(1).press("Control+Enter")
    expect(dialogue.ready).to_have_count(1)
    assert serious_problems(dialogue.page) == []
    dialogue.page.get_by_role("button", name="Switch to Chinese").click()
    expect(dialogue.page.get_by_role("button", name="生成缺少的台词")).to_be_visible()
    dialogue.page.set_viewport_size({"width": 390, "height": 844})
    dialogue.page.get_by_role("button", name="第 1 行的工具").click()
    assert serious_problems(dialogue.page) == []
    assert dialogue.page.evaluate("document.documentElement.scrollWidth") <= 390
