"""The studio as its user sees it: opens it, makes takes, reads the kept sound back."""

from __future__ import annotations

import base64
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
from playwright.sync_api import BrowserContext, ConsoleMessage, Locator, Page, Request, expect

FAILED_LOAD = "Failed to load resource"
LOOK = "import('/studio/core/server.js').then(({ server }) => server.look())"
"""The page asks for the server's state now, and not only when it is time."""
READ_SOUND = """async (id) => {
    const { store } = await import("/studio/core/store.js");
    const bytes = new Uint8Array(await new Blob(await store.pieces(id)).arrayBuffer());
    let text = "";
    for (let i = 0; i < bytes.length; i += 4096) text += String.fromCharCode(...bytes.subarray(i, i + 4096));
    return btoa(text);
}"""

KEPT = """async ([view, text]) => {
    const { store } = await import("/studio/core/store.js");
    const end = performance.now() + 30_000;
    while ((await store.draft(view))?.text !== text) if (performance.now() > end) throw Error(`${view} is not kept`);
}"""


class Studio:
    """One browser profile with the studio open in `page`."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.context = context
        self.url = url
        self.problems: list[str] = []
        self.expects_failures = False
        """Whether the test makes requests fail: Chromium logs each such answer as an error of its own."""
        context.on("console", self._console)
        context.on("weberror", lambda error: self.problems.append(str(error.error)))
        context.on("request", self._request)
        self.page: Page = context.new_page()

    def open(self, view: str = "speak") -> None:
        """Opens the page, or loads it anew, and waits until the server's state is known."""
        opened = self.page.url.startswith(self.url)
        self.page.goto(f"{self.url}/#{view}")
        if opened:
            self.page.reload()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Until the page knows a server that can speak."""
        expect(self.page.locator(".server")).to_have_attribute("data-status", "ready")

    def duplicate(self) -> None:
        """Goes on in a copy of the tab, which a browser gives the session storage of the first."""
        with self.context.expect_page() as copy:
            self.page.evaluate("() => void window.open(location.href)")
        self.page = copy.value
        self.wait_ready()

    def wait_kept(self, view: str, text: str) -> None:
        """Until the text of a view is on disk: a page that is left may not finish writing."""
        self.page.evaluate(KEPT, [view, text])

    def check(self) -> None:
        """No error was logged, no other host was asked."""
        assert self.problems == []

    def view(self, view: str) -> Locator:
        """Goes to a view."""
        self.page.locator(f"nav a[href='#{view}']").click()
        found = self.page.locator(f"#view-{view}")
        expect(found).to_be_visible()
        return found

    @property
    def takes(self) -> Locator:
        """The cards of the takes, newest first."""
        return self.page.locator(".take")

    @property
    def text(self) -> Locator:
        """The sheet of Speak."""
        return self.page.get_by_label("Text to speak")

    @property
    def notices(self) -> Locator:
        """What the page says at its lower edge."""
        return self.page.locator(".notice")

    def button(self, name: str) -> Locator:
        """A button of the view in front, by exactly its name."""
        return self.page.get_by_role("button", name=name, exact=True)

    def start(self, text: str, voice: str | None = None) -> Locator:
        """Begins a take."""
        before = self.takes.count()
        self.text.fill(text)
        if voice:
            fold = self.page.locator("#view-speak .fold").first
            if fold.get_attribute("open") is None:
                fold.locator("summary").click()
            self.page.get_by_role("radio", name=voice).check()
        self.button("Speak").click()
        expect(self.takes).to_have_count(before + 1)
        return self.takes.first

    def speak(self, text: str, voice: str | None = None) -> Locator:
        """Makes a take and waits for its end."""
        take = self.start(text, voice)
        self.wait_made(take)
        return take

    def wait_made(self, take: Locator) -> None:
        """Until a take has ended and is kept."""
        expect(take.get_by_role("button", name="Edit")).to_be_visible(timeout=60_000)

    def samples(self, take: Locator) -> npt.NDArray[np.int16]:
        """The sound of a take as the browser keeps it."""
        stored = self.page.evaluate(READ_SOUND, take.get_attribute("data-take"))
        return np.frombuffer(base64.b64decode(stored), "<i2")

    def _console(self, message: ConsoleMessage) -> None:
        expected = self.expects_failures and message.text.startswith(FAILED_LOAD)
        if message.type in ("error", "warning") and not expected:
            self.problems.append(f"{message.text} ({message.location.get('url')})")

    def _request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("blob", "data") and parts.netloc != urlsplit(self.url).netloc:
            self.problems.append(f"asked {request.url}")
