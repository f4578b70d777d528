"""The capacity table is what it says: computed from what was measured."""

from __future__ import annotations

import re

import pytest

from docs.page import Page

PAGES = [Page("docs/scaling.md"), Page("docs/scaling.zh-CN.md")]
RESULTS = Page("bench/RESULTS.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_capacity_is_computed_from_the_measured_figures(page: Page) -> None:
    (factor,) = [float(row[3]) for row in RESULTS.rows if row[:2] == ["belinda", "English"]]
    (of_two,) = [float(row[1].removesuffix(" x")) for row in RESULTS.rows if row[0] == "two replicas against one"]
    computed = {count: round(count * (of_two / 2 if count > 1 else 1) / factor, 1) for count in (1, 2, 4, 8)}
    table = {int(row[0]): float(row[1]) for row in page.rows if re.fullmatch(r"\d+", row[0])}
    assert table == computed
    assert f"{of_two:g}" in page.text
