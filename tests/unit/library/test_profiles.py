"""Profiles and scenes are written, and what people wrote into the file stays in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from higgs_server.library.folder import Folder
from higgs_server.library.profiles import PROFILE_FILE, ProfileLibrary, _edited, _parse
from higgs_server.library.scenes import SceneLibrary
from higgs_server.types import AlreadyExists, InvalidRequest, NotFound, ReadOnly, StorageFailed

BY_HAND = """# Mine.
other: [1, 2]
profiles:
  # The first one.
  calm: A calm
    voice.
  deep: >-
    A deep voice,
    slowly.

  # The last one.
  7: Seven.
# The end.
"""


def described(library: ProfileLibrary) -> dict[str, str]:
    return {profile.name: profile.description for profile in library.list()}


def test_comments_and_everything_else_stay(tmp_path: Path) -> None:
    library = ProfileLibrary(tmp_path)
    library.file.write_text(BY_HAND)
    library.add("新的", "一个 声音: # not a comment")
    library.update("calm", "A calmer\nvoice.")
    library.update("7", "Still seven.")
    assert described(library) == {
        "新的": "一个 声音: # not a comment",
        "calm": "A calmer voice.",
        "deep": "A deep voice, slowly.",
        "7": "Still seven.",
    }
    library.delete("deep")
    library.delete("7")
    assert described(library).keys() == {"calm", "新的"}
    text = library.file.read_text()
    for kept in ("# Mine.", "other: [1, 2]", "# The first one.", "# The end."):
        assert kept in text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "profiles:\n",
        "profiles: {}\n",
        "profiles: {calm: A calm voice.}",
        "profiles:\n  calm: &a A calm voice.\n  b: *a",
        "profiles:\n\n\n    calm: |\n      A calm\n      voice.\n\n\n",
        "{profiles: {calm: x}, other: 1}",
        "profiles:\n  calm: A calm voice.",
        "---\nprofiles:\n  calm: 'it''s'\n...\n",
        "profiles:\r\n  calm: A calm voice.\r\nother: 1\r\n",
    ],
)
def test_however_it_is_written_nothing_is_lost(text: str) -> None:
    data = text.encode()
    content = _parse(data)
    for name, description in (("new", "A new one."), ("calm", "Another."), ("calm", None)):
        edited = _parse(_edited(data, content, name, description))
        wanted = {key: value for key, value in content["profiles"].items() if key != name}
        if description:
            wanted[name] = description
        assert {key: " ".join(value.split()) for key, value in edited.pop("profiles").items()} == {
            key: " ".join(value.split()) for key, value in wanted.items()
        }
        assert edited == {key: value for key, value in content.items() if key != "profiles"}


NAMES = st.text(min_size=1, max_size=9).filter(str.isprintable)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(
    st.dictionaries(NAMES, st.text(min_size=1, max_size=30), max_size=4),
    NAMES,
    st.text(min_size=1, max_size=30),
)
def test_any_text_comes_back(before: dict[str, str], name: str, description: str) -> None:
    data = yaml.safe_dump({"profiles": before}, allow_unicode=True).encode()
    edited = _parse(_edited(data, _parse(data), name, description))["profiles"]
    assert edited.keys() == {*before, name}
    assert " ".join(edited[name].split()) == " ".join(description.split())


def test_what_is_refused(tmp_path: Path) -> None:
    library = ProfileLibrary(tmp_path)
    library.add("calm", "A calm voice.")
    with pytest.raises(AlreadyExists):
        library.add("calm", "x")
    for name, description in (("a/b", "x"), ("new", " "), ("new", "x" * 3_000)):
        with pytest.raises(InvalidRequest):
            library.add(name, description)
    for missing in (lambda: library.update("wild", "x"), lambda: library.delete("wild")):
        with pytest.raises(NotFound, match="calm"):
            missing()
    assert described(library) == {"calm": "A calm voice."}


@pytest.mark.parametrize(
    "broken", ["- a list", "profiles: [1]", "a: b: c", "!!python/object/apply:os.getcwd []", "\x00"]
)
def test_a_file_that_cannot_be_read_is_left_alone(tmp_path: Path, broken: str) -> None:
    library = ProfileLibrary(tmp_path)
    library.file.write_text(broken)
    with pytest.raises(StorageFailed, match="Mend it"):
        library.add("calm", "A calm voice.")
    assert library.file.read_text() == broken


def test_profiles_that_ship_can_be_replaced_but_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    library = ProfileLibrary(Path("examples/voice_prompts"))
    shipped = described(library)
    with pytest.raises(ReadOnly):
        library.delete("narrator")
    library.update("narrator", "Mine.")
    assert described(library) == {**shipped, "narrator": "Mine."}
    assert set(yaml.safe_load((tmp_path / "examples/voice_prompts" / PROFILE_FILE).read_text())["profiles"]) == {
        "narrator"
    }
    library.delete("narrator")
    assert described(library) == shipped


def test_scenes_are_written_and_go_before_those_that_ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    library = SceneLibrary(Path("examples/scene_prompts"))
    shipped = {scene.name for scene in library.list()}
    library.put("attic", " An attic.\n", "x")
    library.put("quiet_indoor", "My room.", "x")
    assert {scene.name for scene in library.list()} == shipped | {"attic"}
    for name, content in (("attic", "An attic."), ("quiet_indoor", "My room.")):
        scene = library.get(name)
        assert scene
        assert scene.content == content
    for name, content in (("empty", "x"), ("attic", " "), ("../x", "x"), ("", "x")):
        with pytest.raises(InvalidRequest):
            library.put(name, content, "x")


def test_a_read_that_fails_erases_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = ProfileLibrary(tmp_path)
    library.add("calm", "A calm voice.")
    before = library.file.read_bytes()
    real = Folder.open
    good = 0

    def failing(self: Folder, name: str, version: str | None) -> bytes:
        nonlocal good
        if name == PROFILE_FILE:
            good -= 1
            if good < 0:
                raise PermissionError(13, "Permission denied")
        return real(self, name, version)

    changes = (lambda: library.add("wild", "x"), lambda: library.update("calm", "x"), lambda: library.delete("calm"))
    with monkeypatch.context() as patched:
        patched.setattr(Folder, "open", failing)
        for change in changes:
            for opened in (0, 1):  # first to see who is there, then to write
                good = opened
                with pytest.raises(StorageFailed, match=r"profile\.yaml .*Permission denied"):
                    change()
        good = 0
        with pytest.raises(StorageFailed):
            library.get("calm")
    assert library.file.read_bytes() == before
