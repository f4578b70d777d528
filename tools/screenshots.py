"""Pictures of the studio for docs/images: each view, light and dark, on a desktop and on a phone.

    python tools/screenshots.py FOLDER

The embedded voice speaks what is seen. Chromium is Debian's; what `make test-browser` needs is enough.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Browser, expect, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from browser.conftest import FLAGS, SPOKEN
from browser.studio import Studio
from browser.test_dialogue import Dialogue
from browser.test_longtext import LongText
from decoders import CHROMIUM
from make_tiny_checkpoint import make_tiny_checkpoint
from server_process import ServerProcess

DESKTOP, PHONE = {"width": 1200, "height": 740}, {"width": 390, "height": 780}
STORY = (
    "The harbour wakes before the town does. First come the gulls, then the small boats, and at last, when the bakery "
    "opens its shutters, the smell of bread."
)
SCRIPT = """Anna: Is the ferry late again?
Ben: It left at dawn. The captain said the tide would not wait, and neither would he.
Anna: Then we will have to walk.
Ben: Along the coast? It is a beautiful morning for it.
Anna: You carry the bags, then."""
CHAPTER = "\n\n".join(
    (
        "The ferry left at dawn, and nobody on the pier had slept that night. It was 25°C on deck although the sun was "
        "hardly up.",
        "The engine coughed twice before it ran, and a gull flew away. We drank our coffee standing up, and then the "
        "harbour slid out of sight.",
        "By noon the island lay before us, green and steep, with one white road that climbed from the quay to the "
        "church. My aunt was waiting there, as she had promised, under the same umbrella.",
    )
)


def speak(studio: Studio) -> None:
    """Takes side by side, one of them playing."""
    studio.speak("今天的海很安静，船都回来了。", "zh_woman")
    studio.speak(STORY, "chadwick")
    take = studio.speak(STORY, "belinda")
    expect(studio.notices).to_have_count(0)
    take.get_by_role("slider").press("Home")
    take.get_by_role("slider").focus()
    for _ in range(4):
        take.get_by_role("slider").press("ArrowRight")
    studio.text.focus()
    studio.page.evaluate("document.activeElement.blur()")


def dialogue(studio: Studio) -> None:
    """A scene of two, made, with its cast."""
    view = Dialogue(studio)
    view.paste(SCRIPT)
    for speaker, voice in (("Anna", "belinda"), ("Ben", "en_man")):
        view.view.get_by_label(f"Voice of {speaker}").select_option(voice)
    view.make()
    expect(studio.notices).to_have_count(0)
    studio.page.evaluate("document.activeElement.blur()")


def longtext(studio: Studio) -> None:
    """A chapter, being read."""
    view = LongText(studio)
    view.plan(CHAPTER)
    view.click("Speak")
    expect(view.heard).to_have_count(1)
    expect(view.ready).to_have_count(view.pieces.count())
    studio.page.evaluate("document.activeElement.blur()")


def voices(studio: Studio) -> None:
    """A recording that is being made into a voice."""
    view = studio.view("voices")
    expect(view.get_by_role("slider").nth(5)).to_be_visible()
    studio.button("Record").click()
    expect(studio.page.get_by_text(re.compile(r"recording, ([6-9]|\d\d)"))).to_be_visible()
    studio.button("Stop recording").click()
    studio.page.get_by_label("Name", exact=True).fill("me")
    for _ in range(6):
        studio.page.get_by_role("slider", name="Start of the part").press("ArrowRight")
        studio.page.get_by_role("slider", name="End of the part").press("ArrowLeft")
    studio.page.evaluate("document.activeElement.blur()")


def shoot(browser: Browser, url: str, folder: Path, act: Callable[[Studio], None]) -> None:
    """One view in all its looks."""
    context = browser.new_context(locale="en-GB", viewport=DESKTOP, permissions=["microphone"])
    studio = Studio(context, url)
    studio.open()
    act(studio)
    for scheme in ("light", "dark"):
        for device, size in (("desktop", DESKTOP), ("phone", PHONE)):
            studio.page.set_viewport_size(size)
            studio.page.emulate_media(color_scheme=scheme)
            studio.page.wait_for_timeout(400)  # until it is drawn
            studio.page.screenshot(path=folder / f"studio-{act.__name__}-{scheme}-{device}.png")
    context.close()
    assert studio.problems == []


def main() -> None:
    """Starts the servers and Chromium, and takes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=30_000)
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        flags = [*FLAGS.split(), f"--use-file-for-fake-audio-capture={SPOKEN}"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        with ServerProcess(["--model-path", "embedded"], cwd=Path(place)) as server:
            server.wait_ready()
            for act in (speak, dialogue, longtext):
                shoot(browser, server.url, folder, act)
        model = make_tiny_checkpoint(Path(place) / "tiny-checkpoint", seed=4)
        with ServerProcess(["--model-path", str(model)], cwd=Path(place)) as server:
            server.wait_ready()
            shoot(browser, server.url, folder, voices)
        browser.close()


if __name__ == "__main__":
    main()
