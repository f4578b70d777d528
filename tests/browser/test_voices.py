"""Voices, on a tiny checkpoint with a library of its own: in by file or microphone, heard, checked, changed, gone."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from playwright.sync_api import Locator, expect

from browser.studio import Studio
from ears import hear_english
from higgs_server.audio import wav
from server_process import ROOT, ServerProcess

CLIP = ROOT / "examples/voice_prompts/belinda.wav"
WORDS = (ROOT / "examples/voice_prompts/belinda.txt").read_text().strip()
DROP = """([zone, name, data]) => {
    const transfer = new DataTransfer();
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    transfer.items.add(new File([bytes], name, { type: "audio/wav" }));
    zone.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""
DRAFT = """async () => {
    const { store } = await import("/studio/core/store.js");
    const { samples } = await store.draft("voices");
    return Array.from(samples);
}"""

WATCH_MICROPHONES = """() => {
    const media = navigator.mediaDevices;
    const open = media.getUserMedia.bind(media);
    window.tracks = [];
    media.getUserMedia = async (wanted) => {
        const stream = await open(wanted);
        window.tracks.push(...stream.getTracks());
        return stream;
    };
}"""
BREAK_WORKLETS = """() => {
    const { AudioWorkletNode } = window;
    window.mend = () => Object.assign(window, { AudioWorkletNode });
    window.AudioWorkletNode = class {
        constructor() {
            throw new Error("no worklet");
        }
    };
}"""
MICROPHONES = "window.tracks.map(({ readyState }) => readyState)"


@pytest.fixture
def server(tiny_server: ServerProcess) -> ServerProcess:
    return tiny_server


def card(studio: Studio, name: str) -> Locator:
    return studio.page.get_by_role("article", name=f"Voice: {name}", exact=True)


def test_a_file_becomes_a_voice_that_speaks_is_changed_and_goes(studio: Studio, server: ServerProcess) -> None:
    page = studio.page
    view = studio.view("voices")
    drop = view.locator(".drop").element_handle()
    page.evaluate(DROP, [drop, "my clip.wav", base64.b64encode(CLIP.read_bytes()).decode()])
    expect(page.get_by_label("Name", exact=True)).to_have_value("my_clip")

    page.get_by_role("slider", name="Start of the part").press("ArrowRight")
    page.get_by_role("slider", name="End of the part").press("ArrowLeft")
    page.get_by_label("What is said in it").fill(WORDS)
    studio.button("Listen").click()
    with page.expect_response("**/generate-upload") as heard:
        studio.button("Hear it speak").click()
    assert heard.value.status == 200

    studio.open("voices")  # nothing is lost
    expect(page.get_by_label("Name", exact=True)).to_have_value("my_clip")
    expect(page.get_by_label("What is said in it")).to_have_value(WORDS)
    page.get_by_label("Name", exact=True).fill("mine")
    studio.button("Save the voice").click()
    expect(page.get_by_text("mine is saved")).to_be_visible()
    mine = card(studio, "mine")
    expect(mine).to_contain_text(WORDS[:40])
    expect(mine.get_by_role("slider")).to_be_visible()

    mine.get_by_role("button", name="Use in Speak").click()
    with page.expect_request("**/generate-stream") as asked:
        take = studio.speak("Hello.")
    assert asked.value.post_data_json["ref_audio"] == "mine"
    assert len(studio.samples(take)) > 0

    studio.view("voices")
    mine.get_by_role("button", name="Edit").click()
    form = page.locator("form")
    form.get_by_label("Name").fill("renamed")
    form.get_by_label("What is said in it").fill("Other words.")
    studio.button("Keep the changes").click()
    renamed = card(studio, "renamed")
    expect(renamed).to_contain_text("Other words.")
    renamed.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(renamed).to_have_count(0)
    assert "renamed" not in {voice["name"] for voice in httpx.get(f"{server.url}/voices").json()["voices"]}


def test_a_recording_from_the_microphone_is_what_was_said(studio: Studio) -> None:
    page = studio.page
    studio.view("voices")
    studio.button("Record").click()
    expect(page.get_by_text(re.compile(r"recording, ([7-9]|\d\d)"))).to_be_visible()
    studio.button("Stop recording").click()
    expect(page.get_by_label("What is said in it")).not_to_have_value("")
    sound = np.array(page.evaluate(DRAFT), np.float32) / 32768
    assert len(sound) >= 7 * 24_000
    # The clip begins anew wherever the recording did: its words are there, in either order.
    heard = set(hear_english(sound).lower().replace(",", "").replace(".", "").split())
    said = set(WORDS.lower().replace(",", "").replace(".", "").split())
    assert len(said & heard) >= 0.7 * len(said)


def test_a_recording_that_cannot_begin_leaves_no_microphone_on_and_two_clicks_ask_once(studio: Studio) -> None:
    page = studio.page
    page.evaluate(WATCH_MICROPHONES)
    page.evaluate(BREAK_WORKLETS)
    studio.view("voices")
    studio.button("Record").click()
    expect(page.get_by_role("alert")).to_contain_text("Recording could not begin")
    assert page.evaluate(MICROPHONES) == ["ended"]
    page.evaluate("window.mend()")
    studio.button("Record").evaluate("button => (button.click(), button.click())")
    expect(studio.button("Stop recording")).to_be_visible()
    studio.button("Stop recording").click()
    expect(page.get_by_label("What is said in it")).not_to_have_value("")
    assert page.evaluate(MICROPHONES) == ["ended", "ended"]


def test_the_checks_advice_is_shown_before_anything_is_kept(studio: Studio, tmp_path: Path) -> None:
    studio.expects_failures = True
    page = studio.page
    studio.view("voices")
    quiet = tmp_path / "quiet.wav"
    hiss = np.random.default_rng(1).normal(0, 0.1, 24_000).astype(np.float32)
    quiet.write_bytes(wav.encode(hiss))
    page.locator("#voice-file").set_input_files(quiet)
    page.get_by_label("Name", exact=True).fill("hiss")
    studio.button("Save the voice").click()
    expect(page.get_by_text("This would not make a good voice")).to_be_visible()
    expect(page.locator(".advice li")).not_to_have_count(0)
    expect(card(studio, "hiss")).to_have_count(0)
    studio.button("Save it all the same").click()
    expect(card(studio, "hiss")).to_be_visible()
    # A name that is taken is said, and nothing typed is lost.
    page.locator("#voice-file").set_input_files(CLIP)
    page.get_by_label("Name", exact=True).fill("hiss")
    studio.button("Save the voice").click()
    expect(page.get_by_role("alert")).to_contain_text("already")
    expect(page.get_by_label("Name", exact=True)).to_have_value("hiss")


def test_what_is_no_recording_is_said(studio: Studio, tmp_path: Path) -> None:
    studio.view("voices")
    text = tmp_path / "notes.txt"
    text.write_text("not a sound")
    studio.page.locator("#voice-file").set_input_files(text)
    expect(studio.page.get_by_role("alert")).to_contain_text("notes.txt is in no format")


def test_the_embedded_voice_takes_none_and_says_why(
    open_studio: Callable[..., Studio], embedded_server: ServerProcess
) -> None:
    studio = open_studio(embedded_server)
    studio.open("voices")
    expect(studio.page.get_by_text("The loaded model cannot take on other voices.")).to_be_visible()
    expect(studio.button("Record")).to_be_disabled()
    clip = card(studio, "belinda")
    expect(clip.get_by_role("slider")).to_be_visible()
    clip.get_by_role("button", name="Play").click()
    expect(clip.get_by_role("button", name="Pause")).to_be_visible()
    studio.view("speak")
    expect(studio.page.get_by_label("Scene")).to_be_disabled()
    expect(studio.page.get_by_role("slider", name="Liveliness")).to_be_disabled()
    expect(studio.page.get_by_role("radio", name="narrator")).to_be_disabled()
    for reason in ("follows no scene", "always says a text the same way"):
        expect(studio.page.locator("#view-speak .cannot").filter(has_text=reason)).to_be_visible()
