"""What axe-core finds wrong with a page as it is shown."""

from __future__ import annotations

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page


def serious_problems(page: Page) -> list[str]:
    """Problems that axe-core calls serious or critical, each with the first element that has it."""
    page.evaluate("Promise.all(document.getAnimations().map((animation) => animation.finished))")
    return [
        f"{found['id']}: {found['help']} ({found['nodes'][0]['html']})"
        for found in Axe().run(page).response["violations"]
        if found["impact"] in ("serious", "critical")
    ]
