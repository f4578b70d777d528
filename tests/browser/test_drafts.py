"""What is being written outlives a reload, a week, other tabs, and whatever takes its place."""

from __future__ import annotations

from playwright.sync_api import expect

from browser.studio import Studio

EIGHT_DAYS_PASS = """async () => {
    const opening = indexedDB.open("studio", 1);
    await new Promise((resolve) => (opening.onsuccess = resolve));
    const transaction = opening.result.transaction("drafts", "readwrite");
    const drafts = transaction.objectStore("drafts");
    drafts.getAll().onsuccess = ({ target }) => {
        for (const draft of target.result) drafts.put({ ...draft, saved: draft.saved - 8 * 24 * 3600 * 1000 });
    };
    await new Promise((resolve) => (transaction.oncomplete = resolve));
    opening.result.close();
}"""
ELSEWHERE = """async (name) => {
    const { store } = await import("/studio/core/store.js");
    return (await store.draftsElsewhere(name)).map(({ text }) => text);
}"""


def test_a_week_takes_only_what_closed_tabs_left_of_the_view_that_is_written_in(studio: Studio) -> None:
    first = studio.page
    studio.text.fill("Here for long.")
    longtext = studio.view("longtext")
    expect(longtext.get_by_label("Voice", exact=True)).not_to_have_value("")  # given, and kept: no tab will write that
    longtext.locator("#longtext-text").fill("A chapter.")
    studio.wait_kept("longtext", "A chapter.")
    studio.page = studio.context.new_page()
    studio.open()
    studio.text.fill("Left by a tab that was closed.")
    studio.wait_kept("speak", "Left by a tab that was closed.")
    studio.page.close()
    first.evaluate(EIGHT_DAYS_PASS)

    studio.page = studio.context.new_page()
    studio.open()
    expect(studio.page.locator("#longtext-text")).to_have_value("A chapter.")  # shown here too, and kept by the first
    first.reload()
    expect(first.locator("#longtext-text")).to_have_value("A chapter.")
    studio.text.fill("Only this is written.")
    assert studio.page.evaluate(ELSEWHERE, "speak") == ["Here for long."]
    assert studio.page.evaluate(ELSEWHERE, "longtext") == ["A chapter."]

    first.evaluate(EIGHT_DAYS_PASS)
    first.close()
    studio.text.fill("Only this is written, again.")
    studio.wait_kept("speak", "Only this is written, again.")
    assert studio.page.evaluate(ELSEWHERE, "speak") == []
    studio.page.reload()
    expect(studio.page.locator("#longtext-text")).to_have_value("A chapter.")  # the only one there is


def test_a_duplicated_tab_goes_on_from_what_the_other_one_wrote_and_a_reload_is_no_duplicate(studio: Studio) -> None:
    studio.text.fill("Of the first tab.")
    first = studio.page
    studio.page = studio.context.new_page()
    studio.open()
    studio.text.fill("Of the second, and the latest.")
    studio.wait_kept("speak", "Of the second, and the latest.")
    studio.page = first
    studio.duplicate()
    expect(studio.text).to_have_value("Of the first tab.")
    studio.text.fill("Of the duplicate.")
    studio.wait_kept("speak", "Of the duplicate.")
    for page, text in ((first, "Of the first tab."), (studio.page, "Of the duplicate.")):
        page.reload()
        expect(page.get_by_label("Text to speak")).to_have_value(text)
    assert len(studio.page.evaluate(ELSEWHERE, "speak")) == 2
