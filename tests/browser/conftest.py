"""Chromium, and the studio in it: a page that fails its test when it logs an error or asks any other host.

Each test has a browser profile of its own; the servers are the session's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from browser.studio import Studio
from decoders import CHROMIUM
from make_tiny_checkpoint import make_tiny_checkpoint
from server_process import ROOT, FaultyServer, ServerProcess

SPOKEN = ROOT / "examples/voice_prompts/belinda.wav"
"""What the microphone hears, again and again."""
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --autoplay-policy=no-user-gesture-required "
    "--use-fake-device-for-media-stream --use-fake-ui-for-media-stream"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is the browser's."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests."""
    assert CHROMIUM, "Chromium is missing: sudo apt-get install chromium"
    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        flags = [*FLAGS.split(), f"--use-file-for-fake-audio-capture={SPOKEN}"]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def open_studio(browser: Browser) -> Iterator[Callable[..., Studio]]:
    """Opens the studio of a server in a new profile; takes the options of Playwright's contexts."""
    opened = []

    def opener(server: ServerProcess, **options: Any) -> Studio:
        context = browser.new_context(
            **{"locale": "en-GB", "viewport": {"width": 1280, "height": 860}, "accept_downloads": True, **options}
        )
        context.set_default_timeout(30_000)
        opened.append(studio := Studio(context, server.url))
        return studio

    yield opener
    for studio in opened:
        studio.context.close()
        studio.check()


@pytest.fixture
def studio(open_studio: Callable[..., Studio], server: ServerProcess) -> Studio:
    """The studio of the server that the test module means, open and ready, in English on a desktop."""
    studio = open_studio(server)
    studio.open()
    return studio


@pytest.fixture(scope="session")
def tiny_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A ready server with a tiny checkpoint, which clones, and a library of its own. It speaks noise."""
    folder = make_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), seed=4)
    with ServerProcess(["--model-path", str(folder)], cwd=tmp_path_factory.mktemp("library")) as process:
        process.wait_ready()
        yield process


@pytest.fixture
def held_server(faulty_voice: FaultyServer) -> Iterator[FaultyServer]:
    """The embedded voice, which says belinda's next sentence when the test lets it."""
    faulty_voice.control("hold", "voice")
    yield faulty_voice
    faulty_voice.control("free", "voice")
