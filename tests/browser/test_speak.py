"""Speak, on the embedded voice: from a text to takes that stay, and what happens when something breaks on the way."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Locator, Route, expect

from browser.studio import Studio
from ears import hear_english, word_error_rate
from higgs_server.audio.decode import decode
from server_process import FaultyServer, ServerProcess

TEXT = "The first boats come back into the harbour before the sun is up."
MADE = re.compile("made, about .* left")
THREE = "The first sentence is about the sea. The second one is about the wind. The third is about the sky."
UNTIL_KEPT = """async () => {
    const { store } = await import("/studio/core/store.js");
    const kept = async () => (await store.takes("speak")).some((take) => take.length > 0);
    for (let i = 0; i < 600 && !(await kept()); i++) await new Promise((later) => setTimeout(later, 50));
}"""

PAUSED_EARLY = """async () => {
    const { player } = await import("/studio/core/player.js");
    const { Sound } = await import("/studio/core/sound.js");
    const { resume } = AudioContext.prototype;
    let wake;
    const awake = new Promise((resolve) => (wake = resolve));
    AudioContext.prototype.resume = function () { return awake.then(() => resume.call(this)); };
    const sound = Sound.of(new Int16Array(20 * 24000));
    const started = player.play(sound);
    const seen = [player.playing];
    player.seek(1);
    player.toggle(sound);
    seen.push(player.playing, player.position);
    wake();
    await started;
    seen.push(player.playing);
    player.toggle(window.sound = sound);
    window.player = player;
    return seen;
}"""


def shown_seconds(take: Locator) -> float:
    """What the waveform says of the sound's length."""
    text = take.get_by_role("slider").get_attribute("aria-valuetext") or "/ 0.0 s"
    return float(text.split("/ ")[1].removesuffix(" s"))


def test_a_text_becomes_a_take_that_says_it_and_survives_a_reload(studio: Studio) -> None:
    take = studio.speak(TEXT, "belinda")
    samples = studio.samples(take)
    assert word_error_rate(TEXT, hear_english(samples.astype(np.float32) / 32768)) <= 0.2
    expect(take).to_contain_text("belinda")
    name = take.get_by_label("Name of the take")
    name.fill("Harbour")
    name.press("Enter")
    studio.text.fill("Not spoken yet.")

    studio.open()
    expect(studio.text).to_have_value("Not spoken yet.")
    expect(studio.page.get_by_role("radio", name="belinda")).to_be_checked()
    take = studio.takes.first
    expect(take.get_by_label("Name of the take")).to_have_value("Harbour")
    assert np.array_equal(studio.samples(take), samples)
    take.get_by_role("button", name="Play").click()
    expect(take.get_by_role("button", name="Pause")).to_be_visible()
    take.get_by_role("button", name="Edit").click()
    expect(studio.text).to_have_value(TEXT)

    take.get_by_role("button", name="Delete").click()
    studio.page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(studio.takes).to_have_count(0)
    studio.open()
    expect(studio.page.get_by_text("No takes yet")).to_be_visible()


def test_sound_is_heard_and_drawn_while_it_is_made_and_stop_frees_the_server(
    open_studio: Callable[..., Studio], held_server: FaultyServer
) -> None:
    studio = open_studio(held_server)
    studio.open()
    take = studio.start(THREE, "belinda")
    expect(studio.page.get_by_text("waiting for the first sound")).to_be_visible()
    held_server.control("step", "voice")
    expect(studio.page.get_by_text(MADE)).to_be_visible()
    expect(take.get_by_role("button", name="Pause")).to_be_visible()  # it plays
    expect(studio.page.get_by_role("group", name="Server")).to_contain_text("1 speaking, 0 waiting")
    first = shown_seconds(take)
    held_server.control("step", "voice")
    expect(take.get_by_role("slider")).not_to_have_attribute("aria-valuemax", "")
    studio.page.wait_for_function(
        "([slider, before]) => Number(slider.getAttribute('aria-valuetext').split('/ ')[1].split(' ')[0]) > before",
        arg=[take.get_by_role("slider").element_handle(), first],
    )

    for _ in range(2):
        studio.button("Speak").dispatch_event("click")  # changes nothing while it speaks
    expect(studio.takes).to_have_count(1)
    studio.button("Stop").click()
    studio.wait_made(take)
    expect(take).to_contain_text("Stopped.")
    held_server.control("free", "voice")
    held_server.idle()
    kept = studio.samples(take)
    assert len(kept) / 24_000 > first

    studio.open()
    assert np.array_equal(studio.samples(studio.takes.first), kept)
    expect(studio.takes.first).to_contain_text("Stopped.")


def test_a_reload_in_the_middle_keeps_the_sound_that_had_come(
    open_studio: Callable[..., Studio], held_server: FaultyServer
) -> None:
    studio = open_studio(held_server)
    studio.open()
    take = studio.start(THREE, "belinda")
    held_server.control("step", "voice")
    studio.page.evaluate(UNTIL_KEPT)
    kept = studio.samples(take)
    assert len(kept) > 0
    studio.open()
    expect(studio.takes.first).to_contain_text("Not finished")
    expect(studio.text).to_have_value(THREE)
    assert np.array_equal(studio.samples(studio.takes.first)[: len(kept)], kept)
    held_server.control("free", "voice")
    held_server.idle()


def test_the_server_goes_away_in_the_middle_and_comes_back(open_studio: Callable[..., Studio], tmp_path: Path) -> None:
    with FaultyServer(["--model-path", "embedded"], cwd=tmp_path) as first:
        first.wait_ready()
        first.control("hold", "voice")
        studio = open_studio(first)
        studio.expects_failures = True
        studio.open()
        take = studio.start(THREE, "belinda")
        first.control("step", "voice")
        expect(studio.page.get_by_text(MADE)).to_be_visible()
        first.stop(signal.SIGKILL)
    studio.wait_made(take)
    expect(studio.page.get_by_role("alert")).to_contain_text("The connection broke off.")
    expect(studio.page.locator(".server")).to_have_attribute("data-status", "away")
    expect(studio.text).to_have_value(THREE)
    assert len(studio.samples(take)) > 0
    studio.button("Speak").click()
    expect(studio.page.get_by_role("alert")).to_contain_text("The server does not answer.")
    expect(studio.takes).to_have_count(1)

    port = first.url.rpartition(":")[2]
    with ServerProcess(["--model-path", "embedded", "--port", port], cwd=tmp_path):
        studio.wait_ready()
        expect(studio.page.get_by_text("The server is back.")).to_be_visible()
        assert len(studio.samples(studio.speak(TEXT))) > 24_000


@pytest.mark.parametrize(
    ("status", "headers", "says"),
    [
        (503, {"retry-after": "3"}, "The queue is full."),
        (429, {}, "Too many requests."),
        (413, {}, "The text is too long."),
    ],
)
def test_a_refusal_is_a_sentence_and_the_text_stays(
    studio: Studio, status: int, headers: dict[str, str], says: str
) -> None:
    studio.expects_failures = True
    body = {"success": False, "message": says, "error": {"code": "refused", "param": None}}
    studio.page.route("**/generate-stream", lambda route: route.fulfill(status=status, headers=headers, json=body))
    studio.text.fill(TEXT)
    studio.button("Speak").click()
    expect(studio.page.get_by_role("alert")).to_contain_text(says)
    expect(studio.takes).to_have_count(0)
    expect(studio.text).to_have_value(TEXT)
    studio.page.unroute("**/generate-stream")
    studio.page.get_by_role("alert").get_by_role("button", name="Try again").click()
    studio.wait_made(studio.takes.first)


def test_a_voice_that_is_gone_is_asked_for_by_name_and_the_answer_says_who_is_there(studio: Studio) -> None:
    def with_anna(route: Route) -> None:
        voices = route.fetch().json()["voices"]
        route.fulfill(json={"voices": [*voices, {**voices[0], "id": "anna", "name": "anna"}]})

    page = studio.page
    page.route("**/v1/audio/voices", with_anna)
    studio.open()
    anna = page.get_by_role("radio", name=re.compile("^anna"))
    anna.check()
    page.unroute("**/v1/audio/voices")
    page.evaluate("import('/studio/core/library.js').then(({ library }) => library.refresh())")
    expect(anna).to_have_count(0)
    studio.expects_failures = True
    studio.text.fill(TEXT)
    with page.expect_request("**/generate-stream") as asked:
        studio.button("Speak").click()
    assert asked.value.post_data_json["ref_audio"] == "anna"
    expect(page.get_by_role("alert")).to_contain_text("No voice is called 'anna'. There is: belinda")
    expect(studio.takes).to_have_count(0)


def test_a_take_in_every_format_and_as_code_that_runs(studio: Studio, tmp_path: Path) -> None:
    studio.context.grant_permissions(["clipboard-read", "clipboard-write"])
    take = studio.speak(TEXT + ' "It\'s early", says Zoë.', "belinda")
    samples = studio.samples(take)
    for name in ("WAV", "MP3", "OPUS", "AAC", "FLAC"):
        take.locator("summary[aria-label=Download]").click()
        with studio.page.expect_download() as download:
            studio.button(name).click()
        assert download.value.suggested_filename.endswith(f".{name.lower()}")
        sound = decode(download.value.path().read_bytes(), max_seconds=60).samples
        assert abs(len(sound) - len(samples)) < 0.2 * 24_000
        if name in ("WAV", "FLAC"):
            assert np.array_equal(np.round(sound * 32768).astype(np.int16), samples)

    for button, command in (("as curl", ["bash"]), ("as Python", [sys.executable])):
        take.locator("summary[aria-label=Copy]").click()
        studio.button(button).click()
        expect(studio.page.get_by_text("Copied.")).to_be_visible()
        code = studio.page.evaluate("navigator.clipboard.readText()")
        subprocess.run(command, input=code, text=True, cwd=tmp_path, check=True)
        sound = decode((tmp_path / "take.mp3").read_bytes(), max_seconds=60).samples
        assert abs(len(sound) - len(samples)) < 0.2 * 24_000
        (tmp_path / "take.mp3").unlink()


def test_two_tabs_share_takes_and_keep_their_own_text(studio: Studio) -> None:
    studio.speak("A short one.", "belinda")
    studio.text.fill("The text of the first tab.")
    studio.takes.first.get_by_label("Name of the take").focus()
    first = studio.page
    studio.page = studio.context.new_page()
    studio.open()
    expect(studio.takes).to_have_count(1)
    studio.speak(TEXT, "belinda")
    second, studio.page = studio.page, first
    expect(studio.takes).to_have_count(2)
    expect(studio.takes.last.get_by_label("Name of the take")).to_be_focused()
    second.get_by_label("Name of the take").first.fill("Named in the second tab")
    second.get_by_label("Name of the take").first.press("Enter")
    expect(studio.takes.first.get_by_label("Name of the take")).to_have_value("Named in the second tab")
    expect(studio.takes.first).not_to_contain_text("Not finished")
    first.reload()
    second.reload()
    expect(studio.text).to_have_value("The text of the first tab.")
    studio.page = second
    expect(studio.text).to_have_value(TEXT)


def test_a_take_in_place_of_a_text_can_be_undone(studio: Studio) -> None:
    take = studio.speak(TEXT, "belinda")
    studio.text.fill("Written for an hour.")
    studio.page.get_by_role("radio", name="Any voice").check()
    take.get_by_role("button", name="Edit").dblclick()
    studio.notices.get_by_role("button", name="Undo").click()
    expect(studio.text).to_have_value("Written for an hour.")
    expect(studio.page.get_by_role("radio", name="Any voice")).to_be_checked()
    studio.wait_kept("speak", "Written for an hour.")


def test_the_keyboard_is_enough(studio: Studio) -> None:
    keys = studio.page.keyboard
    keys.press("Tab")
    expect(studio.page.get_by_role("link", name="Skip to the content")).to_be_focused()
    keys.press("Enter")
    keys.press("Tab")
    expect(studio.text).to_be_focused()
    keys.type(TEXT)
    keys.press("Control+Enter")
    studio.wait_made(studio.takes.first)
    slider = studio.takes.first.get_by_role("slider")
    slider.focus()
    keys.press("Home")
    keys.press("ArrowRight")
    keys.press("Space")
    expect(studio.takes.first.get_by_role("button", name="Play")).to_be_visible()
    expect(slider).to_have_attribute("aria-valuenow", re.compile("[1-9]"))  # drawn with the next frame


def test_a_pause_while_the_loudspeaker_wakes_is_one(studio: Studio) -> None:
    assert studio.page.evaluate(PAUSED_EARLY) == [True, False, 1, False]
    studio.page.wait_for_function("player.sound === sound && player.position > 1")  # and it can go on
