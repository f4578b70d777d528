"""Names of voices: the library's go first, then OpenAI's, where what these stand for is there."""

from __future__ import annotations

import pytest

from higgs_server.server.openai import VoiceId, _voice_name


@pytest.mark.parametrize(
    ("voice", "known", "name"),
    [
        ("belinda", {"belinda"}, "belinda"),
        ("nova", {"belinda"}, "belinda"),
        ("NOVA", {"belinda"}, "belinda"),
        (VoiceId(id="nova"), {"belinda"}, "belinda"),
        ("nova", {"belinda", "nova"}, "nova"),
        ("nova", {"ann"}, "nova"),  # so that the error names what was asked for
        ("nobody", {"belinda"}, "nobody"),
        ("", {"belinda"}, ""),
        (None, {"belinda"}, None),
    ],
)
def test_which_voice_a_name_means(voice: str | VoiceId | None, known: set[str], name: str | None) -> None:
    assert _voice_name(voice, known) == name
