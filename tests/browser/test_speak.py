"""Speak, on the embedded voice: from a text to takes that stay."""

from __future__ import annotations

import numpy as np
from playwright.sync_api import expect

from browser.studio import Studio
from ears import hear_english, word_error_rate

TEXT = "The first boats come back into the harbour before the sun is up."


def test_a_text_becomes_a_take_that_says_it_and_survives_a_reload(studio: Studio) -> None:
    take = studio.speak(TEXT, "belinda")
    samples = studio.samples(take)
    assert word_error_rate(TEXT, hear_english(samples.astype(np.float32) / 32768)) <= 0.2
    expect(take).to_contain_text("belinda")

    studio.open()
    expect(studio.page.get_by_label("Text to speak")).to_have_value(TEXT)
    expect(studio.page.get_by_role("radio", name="belinda")).to_be_checked()
    assert np.array_equal(studio.samples(studio.takes.first), samples)
