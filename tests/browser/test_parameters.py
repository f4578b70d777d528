"""Speak on a tiny checkpoint: what the form says reaches the model, and a seed brings a take back."""

from __future__ import annotations

import re
from collections.abc import Callable

import httpx
import numpy as np
import pytest
from playwright.sync_api import expect

from browser.studio import LOOK, Studio
from server_process import ServerProcess

TEXT = "Hello there."


@pytest.fixture
def server(tiny_server: ServerProcess) -> ServerProcess:
    return tiny_server


def test_sliders_scene_voice_and_seed_are_what_is_asked_for(studio: Studio) -> None:
    page = studio.page
    for label, keys in (("Liveliness", ["End"]), ("Variety", ["ArrowLeft"])):
        slider = page.get_by_role("slider", name=label)
        for key in keys:
            slider.press(key)
    page.locator("#view-speak").get_by_text("More", exact=True).click()
    page.get_by_role("slider", name="Longest answer").press("ArrowRight")
    page.locator("#seed").fill("77")
    page.get_by_label("Scene").select_option("small_hall")
    with page.expect_request("**/generate-stream") as asked:
        take = studio.speak(TEXT, "chadwick")
    body = asked.value.post_data_json
    assert body["text"] == TEXT
    assert body["ref_audio"] == "chadwick"
    assert body["scene_prompt"] == "small_hall"
    assert body["seed"] == 77
    assert body["temperature"] == 1.5
    assert body["top_p"] == pytest.approx(0.9)
    assert body["max_new_tokens"] == 25
    for chip in ("chadwick", "small_hall", "77"):
        expect(take).to_contain_text(chip)

    page.get_by_role("button", name="Reset to usual").click()
    with page.expect_request("**/generate-stream") as asked:
        studio.speak(TEXT, "male en british")
    body = asked.value.post_data_json
    assert (body["temperature"], body["top_p"], body["top_k"], body["seed"], body["max_new_tokens"]) == (
        0.7, 0.95, 50, None, None,
    )  # fmt: skip
    assert body["ref_audio"].startswith("profile:")
    expect(studio.takes.first.locator(".chip.differs")).not_to_have_count(0)


def test_typing_while_the_model_loads_keeps_scene_and_voice(studio: Studio, server: ServerProcess) -> None:
    page = studio.page
    page.get_by_label("Scene").select_option("small_hall")
    page.get_by_role("radio", name="chadwick").check()
    studio.text.fill("Before.")
    loading = {**httpx.get(f"{server.url}/info").json(), "status": "loading", "is_loaded": False}
    page.route("**/info", lambda route: route.fulfill(json=loading))
    page.reload()
    expect(studio.text).to_have_value("Before.")
    studio.text.fill("Meanwhile.")
    page.unroute("**/info")
    studio.wait_ready()
    expect(page.get_by_label("Scene")).to_have_value("small_hall")
    expect(page.get_by_role("radio", name="chadwick")).to_be_checked()
    studio.open()
    expect(studio.text).to_have_value("Meanwhile.")
    expect(page.get_by_label("Scene")).to_have_value("small_hall")
    expect(page.get_by_role("radio", name="chadwick")).to_be_checked()


def test_again_is_the_same_sound_and_another_take_is_not(studio: Studio) -> None:
    studio.page.locator("#view-speak").get_by_text("More", exact=True).click()
    studio.page.get_by_role("slider", name="Longest answer").press("ArrowRight")
    first = studio.speak(TEXT, "belinda")
    sound = studio.samples(first)
    first.get_by_role("button", name="Again").click()
    expect(studio.takes).to_have_count(2)
    studio.wait_made(studio.takes.first)
    assert np.array_equal(studio.samples(studio.takes.first), sound)
    studio.takes.first.get_by_role("button", name="Another take").click()
    expect(studio.takes).to_have_count(3)
    studio.wait_made(studio.takes.first)
    assert not np.array_equal(studio.samples(studio.takes.first), sound)


def test_another_take_is_offered_where_the_model_would_make_one(
    open_studio: Callable[..., Studio], embedded_server: ServerProcess, server: ServerProcess
) -> None:
    studio = open_studio(embedded_server)
    studio.open()
    another = studio.speak(TEXT, "belinda").get_by_role("button", name="Another take")
    expect(another).to_be_disabled()
    expect(another).to_have_attribute("title", re.compile("always says a text the same way"))
    loading = {**httpx.get(f"{embedded_server.url}/info").json(), "status": "loading", "is_loaded": False}
    studio.page.route("**/info", lambda route: route.fulfill(json=loading))
    studio.page.reload()
    expect(another).to_be_enabled()  # the model is not known yet
    studio.page.unroute("**/info")
    studio.page.evaluate(LOOK)
    expect(another).to_be_disabled()
    studio.page.route("**/info", lambda route: route.fulfill(json=httpx.get(f"{server.url}/info").json()))
    studio.page.evaluate(LOOK)
    expect(another).to_be_enabled()
    expect(another).to_have_attribute("title", "Same text and settings, new seed")
