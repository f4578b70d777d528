"""Folders on disk become voices, scenes and profiles; names stay in their folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from higgs_server.library import scenes
from higgs_server.library.folder import Folder
from higgs_server.library.names import MAX_NAME_LENGTH, check_name, listed
from higgs_server.library.profiles import ProfileLibrary
from higgs_server.library.scenes import SceneLibrary
from higgs_server.library.voices import VoiceLibrary
from higgs_server.types import DEFAULT_SCENE, InvalidRequest, NotFound, StorageFailed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("anna.wav", "bert.mp3", "bert.wav", "李雷.flac", "notes.md", ".hidden.wav"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "sub.wav").mkdir()
    (tmp_path / "anna.txt").write_text("﻿I am Anna. \n", encoding="utf-8")
    (tmp_path / "bert.txt").write_text("  \n")
    return tmp_path


def test_voices_are_clips_with_their_transcripts(folder: Path) -> None:
    voices = VoiceLibrary(folder).list()
    assert [voice.name for voice in voices] == ["anna", "bert", "李雷"]
    assert [voice.transcript for voice in voices] == ["I am Anna.", None, None]
    assert [voice.file and voice.file.name for voice in voices] == ["anna.wav", "bert.wav", "李雷.flac"]


def test_a_clip_that_comes_or_goes_counts_at_once(folder: Path) -> None:
    library = VoiceLibrary(folder)
    with pytest.raises(NotFound, match="anna, bert, 李雷"):
        library.get("carl")
    (folder / "carl.ogg").write_bytes(b"x")
    assert library.get(" carl ").name == "carl"
    (folder / "carl.ogg").unlink()
    with pytest.raises(NotFound):
        library.get("carl")


def test_missing_folders_are_empty() -> None:
    nowhere = Path("/nonexistent")
    assert VoiceLibrary(nowhere).list() == []
    assert [scene.name for scene in SceneLibrary(nowhere).list()] == [DEFAULT_SCENE]
    assert ProfileLibrary(nowhere).list() == []
    with pytest.raises(NotFound, match="none"):
        VoiceLibrary(nowhere).get("anna")


@pytest.mark.parametrize(
    "name", ["", " ", "..", "../anna", "a/b", "a\\b", "/etc/passwd", "a\0", ".anna", "a..b", "x" * 200]
)
def test_what_is_no_name_is_refused(folder: Path, name: str) -> None:
    for get in (VoiceLibrary(folder).get, SceneLibrary(folder).get, ProfileLibrary(folder).get):
        if get.__self__.__class__ is SceneLibrary and not name.strip():
            continue
        with pytest.raises(InvalidRequest):
            get(name)


@settings(derandomize=True, max_examples=300)
@given(st.text())
def test_a_name_that_passes_never_leaves_its_folder(name: str) -> None:
    try:
        checked = check_name(name, "x")
    except InvalidRequest:
        return
    path = (Path("/library") / f"{checked}.wav").resolve()
    assert path.parent == Path("/library")
    assert len(checked.encode()) <= MAX_NAME_LENGTH


def test_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "attic.txt").write_text("Recorded in an attic.\n")
    (tmp_path / "empty_file.txt").write_text("")
    library = SceneLibrary(tmp_path)
    assert [scene.name for scene in library.list()] == ["attic", DEFAULT_SCENE]
    assert library.list()[0].content == "Recorded in an attic."

    def failing(self: Folder, name: str, version: str | None) -> bytes:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(Folder, "open", failing)
        with pytest.raises(StorageFailed, match=r"attic\.txt .*Permission denied"):
            library.get("attic")
        with pytest.raises(NotFound):
            library.get("cellar")
    for nothing in (None, "", " ", "empty"):
        assert library.get(nothing) is None
    with pytest.raises(NotFound, match=f"attic, {DEFAULT_SCENE}"):
        library.get("cellar")


def test_a_folder_of_ones_own_has_the_default_scene_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = SceneLibrary(tmp_path)
    shipped = Path("examples/scene_prompts", f"{DEFAULT_SCENE}.txt").read_text().strip()
    scene = library.get(DEFAULT_SCENE)
    assert scene
    assert scene.content == shipped
    with pytest.raises(NotFound):
        library.get("reading_blog")  # ships too, but nobody gets it who does not ask for it
    (tmp_path / f"{DEFAULT_SCENE}.txt").write_text("My own quiet room.\n")
    for scene in (library.get(DEFAULT_SCENE), *library.list()):
        assert scene
        assert scene.content == "My own quiet room."
    (tmp_path / f"{DEFAULT_SCENE}.txt").unlink()
    monkeypatch.setattr(scenes, "shipped_examples", lambda _: None)
    assert library.get(DEFAULT_SCENE) is None
    assert library.list() == []


def test_profiles(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    library = ProfileLibrary(tmp_path)
    assert library.list() == []
    library.file.write_text("profiles:\n  calm: A calm\n    voice.\n  7: Seven.\n  none:\n")
    assert [(profile.name, profile.description) for profile in library.list()] == [
        ("7", "Seven."),
        ("calm", "A calm voice."),
    ]
    assert library.get("calm").description == "A calm voice."
    with pytest.raises(NotFound, match="7, calm"):
        library.get("wild")
    for broken in ("- a list", "profiles: [1]", "\x00", "a: b: c", "!!python/object/apply:os.system ['true']"):
        library.file.write_text(broken)
        caplog.clear()
        assert library.list() == []
        assert caplog.records


def test_long_listings_are_cut() -> None:
    shown = listed([f"v{n}" for n in range(50)])
    assert "v19" in shown
    assert "v20" not in shown
    assert "50" in shown
