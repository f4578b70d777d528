"""Chromium, and the studio in it: a page that fails its test when it logs an error or asks any other host.

Each test has a browser profile of its own; the servers are the session's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from browser.studio import Studio
from server_process import ServerProcess

CHROMIUM = "/usr/bin/chromium"
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
    """One Chromium for all tests. Its microphone hums."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield chromium
        chromium.close()


@pytest.fixture
def studio(browser: Browser, server: ServerProcess) -> Iterator[Studio]:
    """The studio of the server that the test module means, open and ready, in English on a desktop."""
    context = browser.new_context(locale="en-GB", viewport={"width": 1280, "height": 860}, accept_downloads=True)
    context.set_default_timeout(30_000)
    studio = Studio(context, server.url)
    studio.open()
    yield studio
    studio.check()
    context.close()
