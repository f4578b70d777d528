"""The focus stays where its user is, whatever happens on the page and on the server."""

from __future__ import annotations

from collections.abc import Callable

import httpx
from playwright.sync_api import expect

from browser.studio import LOOK, Studio
from server_process import FaultyServer

TEXT = "A short line."


def others_speak(studio: Studio, running: int) -> None:
    """The server's queue has changed, and the page has seen it."""
    info = httpx.get(f"{studio.url}/info").json()
    seen = {**info, "queue": {**info["queue"], "running": running}}
    studio.page.unroute("**/info")
    studio.page.route("**/info", lambda route: route.fulfill(json=seen))
    studio.page.evaluate(LOOK)
    expect(studio.page.get_by_role("group", name="Server")).to_contain_text(f"{running} speaking")


def test_what_others_ask_of_the_server_changes_nothing_under_ones_hands(studio: Studio) -> None:
    view = studio.view("dialogue")
    voice = view.get_by_label("Voice of Speaker 1", exact=True)
    voice.select_option("belinda")
    view.get_by_role("textbox", name="Line 1", exact=True).fill(TEXT)
    view.get_by_role("button", name="Make line 1").click()
    expect(view.locator('.line[data-state="ready"]')).to_have_count(1)
    others_speak(studio, 7)

    option = voice.locator("option").last.element_handle()
    menu = view.locator(".tools .menu")
    menu.locator("summary").click()
    others_speak(studio, 8)
    expect(menu).to_have_attribute("open", "")
    assert option.evaluate("option => option.isConnected")  # of an open list too
    for number, control in enumerate((view.get_by_role("radio", name="Take 1"), view.locator(".voice-clip button"))):
        control.focus()
        others_speak(studio, number + 9)
        expect(control).to_be_focused()
    pause = view.get_by_label("Pause after it")
    pause.fill("2.5")
    others_speak(studio, 11)
    expect(pause).to_have_value("2.5")
    pause.press("Enter")
    others_speak(studio, 12)
    expect(pause).to_have_value("2.5")


def test_a_menu_gives_the_focus_back(studio: Studio) -> None:
    studio.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button = studio.speak(TEXT, "belinda").locator("summary[aria-label=Copy]")
    button.press("Enter")
    studio.button("the text").press("Enter")
    expect(studio.page.get_by_text("Copied.")).to_be_visible()
    expect(button).to_be_focused()


def test_who_stops_by_keyboard_can_speak_again(open_studio: Callable[..., Studio], held_server: FaultyServer) -> None:
    studio = open_studio(held_server)
    studio.open()
    studio.start(TEXT, "belinda")
    stop_by_keyboard(studio)
    expect(studio.button("Speak")).to_be_focused()

    dialogue = studio.view("dialogue")
    dialogue.get_by_label("Voice of Speaker 1", exact=True).select_option("belinda")
    dialogue.get_by_role("textbox", name="Line 1", exact=True).fill(TEXT)
    studio.button("Make what is missing").click()
    stop_by_keyboard(studio)
    expect(studio.button("Make what is missing")).to_be_focused()

    longtext = studio.view("longtext")
    longtext.locator("#longtext-text").fill(TEXT)
    longtext.get_by_label("Voice", exact=True).select_option("belinda")
    studio.button("See the pieces").click()
    expect(longtext.locator(".piece")).to_have_count(1)
    studio.button("Speak").click()
    stop_by_keyboard(studio)
    expect(studio.button("Speak")).to_be_focused()


def stop_by_keyboard(studio: Studio) -> None:
    studio.button("Stop").press("Enter")
    expect(studio.button("Stop")).to_have_count(0)
