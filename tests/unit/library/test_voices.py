"""Voices are kept, renamed, replaced and removed; folders of others are read as they are."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from higgs_server.library.folder import Folder
from higgs_server.library.voices import SHIPPED, VoiceLibrary
from higgs_server.types import AlreadyExists, InvalidRequest, NotFound, ReadOnly, StorageFailed, Voice


@pytest.fixture
def library(tmp_path: Path) -> VoiceLibrary:
    return VoiceLibrary(tmp_path / "voices")


def seen(library: VoiceLibrary) -> dict[str, tuple[bytes | None, str | None]]:
    """Recording and transcript by name."""
    voices = [library.get(voice.name) for voice in library.list()]
    return {voice.name: (voice.recording, voice.transcript) for voice in voices}


def files(library: VoiceLibrary) -> set[str]:
    return {file.name for file in library.folder.iterdir() if not file.name.startswith(".")}


def test_keeping_and_replacing(library: VoiceLibrary) -> None:
    kept = library.put(" anna ", b"one", " Hello. ")
    assert (kept.name, kept.recording, kept.transcript, kept.read_only) == ("anna", b"one", "Hello.", False)
    assert files(library) == {"anna.wav", "anna.txt"}
    with pytest.raises(AlreadyExists, match="replace=true"):
        library.put("anna", b"two", None)
    replaced = library.put("anna", b"two", None, replace=True)
    assert replaced.version != kept.version
    assert seen(library) == {"anna": (b"two", None)}
    assert files(library) == {"anna.wav"}


def test_what_lay_there_before_is_gone_when_it_is_replaced(library: VoiceLibrary) -> None:
    library.folder.mkdir()
    for name in ("anna.mp3", "anna.flac", "anna.txt", "bert.txt"):
        (library.folder / name).write_text("old")
    library.put("anna", b"new", None, replace=True)
    library.put("bert", b"new", None)
    assert seen(library) == {"anna": (b"new", None), "bert": (b"new", None)}
    assert files(library) == {"anna.wav", "bert.wav"}


def test_renaming_and_what_it_says(library: VoiceLibrary) -> None:
    library.put("anna", b"a", "A.")
    library.put("bert", b"b", "B.")
    assert library.update("anna", new_name="Anna Karenina").transcript == "A."
    assert library.update("Anna Karenina", transcript="Again.").recording == b"a"
    assert seen(library) == {"Anna Karenina": (b"a", "Again."), "bert": (b"b", "B.")}
    assert library.update("bert", new_name="李雷", transcript="").transcript is None
    assert files(library) == {"Anna Karenina.wav", "Anna Karenina.txt", "李雷.wav"}
    with pytest.raises(AlreadyExists):
        library.update("李雷", new_name="Anna Karenina")
    with pytest.raises(NotFound, match="Anna Karenina, 李雷"):
        library.update("bert", transcript="x")
    assert len(seen(library)) == 2


def test_removing(library: VoiceLibrary) -> None:
    library.put("anna", b"a", "A.")
    held = library.get("anna")
    assert library.delete("anna").name == "anna"
    assert files(library) == set()
    # Whoever has it already goes on.
    assert (held.recording, held.transcript) == (b"a", "A.")
    for missing in (library.get, library.delete):
        with pytest.raises(NotFound):
            missing("anna")


@pytest.mark.parametrize("name", ["a,b", "a.", "con", "NUL.x", "com1", "..", "a/b", "", "\u202egnp", "a\nb", "x" * 101])
def test_names_that_nobody_gets(library: VoiceLibrary, name: str) -> None:
    library.put("anna", b"a", None)
    with pytest.raises(InvalidRequest):
        library.put(name, b"a", None)
    with pytest.raises(InvalidRequest):
        library.update("anna", new_name=name)
    assert set(seen(library)) == {"anna"}


def test_composed_and_decomposed_letters_are_the_same_name(library: VoiceLibrary) -> None:
    library.folder.mkdir()
    for suffix in (".wav", ".txt"):
        (library.folder / (unicodedata.normalize("NFD", "Zoë") + suffix)).write_text("old")
    assert seen(library) == {"Zoë": (b"old", "old")}
    with pytest.raises(AlreadyExists):
        library.put(unicodedata.normalize("NFD", "Zoë"), b"new", None)
    library.put("Zoë", b"new", "New.", replace=True)
    assert seen(library) == {"Zoë": (b"new", "New.")}
    library.delete(unicodedata.normalize("NFD", "Zoë"))
    assert files(library) == set()


# --- what ships -----------------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VoiceLibrary:
    """The default folder, where the working directory has none yet."""
    monkeypatch.chdir(tmp_path)
    return VoiceLibrary(Path("examples/voice_prompts"))


def test_what_ships_lies_below_and_is_not_changed(elsewhere: VoiceLibrary, tmp_path: Path) -> None:
    shipped = {voice.name: voice for voice in elsewhere.list()}
    assert shipped.keys() == SHIPPED
    assert all(voice.read_only for voice in shipped.values())
    assert not (tmp_path / "examples").exists()
    for change in (
        lambda: elsewhere.put("belinda", b"x", None, replace=True),
        lambda: elsewhere.update("belinda", new_name="mine"),
        lambda: elsewhere.update("belinda", transcript="x"),
        lambda: elsewhere.delete("belinda"),
    ):
        with pytest.raises(ReadOnly, match="ships"):
            change()
    elsewhere.put("anna", b"a", None)
    assert (tmp_path / "examples/voice_prompts/anna.wav").read_bytes() == b"a"
    with pytest.raises(ReadOnly):
        elsewhere.update("anna", new_name="belinda")
    # Also for the next process, which finds the folder there.
    assert {voice.name for voice in VoiceLibrary(elsewhere.folder).list()} == SHIPPED | {"anna"}
    elsewhere.delete("anna")
    assert {voice.name for voice in elsewhere.list()} == SHIPPED


def test_a_clip_of_ones_own_goes_before_one_that_ships(elsewhere: VoiceLibrary, tmp_path: Path) -> None:
    own = tmp_path / "examples/voice_prompts"
    own.mkdir(parents=True)
    (own / "belinda.mp3").write_bytes(b"mine")
    voice = elsewhere.get("belinda")
    assert (voice.recording, voice.transcript, voice.read_only) == (b"mine", None, False)
    elsewhere.delete("belinda")
    assert elsewhere.get("belinda").read_only


def test_in_a_checkout_they_are_one_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).resolve().parents[3]
    monkeypatch.chdir(root)
    for folder in (Path("examples/voice_prompts"), root / "examples/voice_prompts"):
        library = VoiceLibrary(folder)
        assert {voice.name for voice in library.list() if voice.read_only} == SHIPPED
        with pytest.raises(ReadOnly):
            library.delete("belinda")


# --- config.json ----------------------------------------------------------------------------------------------------


def presets(library: VoiceLibrary, table: object) -> None:
    library.folder.mkdir(exist_ok=True)
    (library.folder / "config.json").write_text(table if isinstance(table, str) else json.dumps(table))


@pytest.fixture
def boson(library: VoiceLibrary) -> VoiceLibrary:
    presets(
        library,
        {
            "bob": {"transcript": "I am Bob.", "audio_file": "clip1.wav", "system_prompt": "x"},
            "rob": {"transcript": "I am Rob.", "audio_file": "./more/clip2.mp3"},
            "twin": {"audio_file": "clip1.wav"},
            "gone": {"transcript": "x", "audio_file": "gone.wav"},
            "thief": {"transcript": "x", "audio_file": "../secret.wav"},
            "root": {"transcript": "x", "audio_file": "/etc/passwd"},
            "drive": {"transcript": "x", "audio_file": "C:\\x.wav"},
            "odd": ["x"],
        },
    )
    (library.folder.parent / "secret.wav").write_bytes(b"secret")
    (library.folder / "more").mkdir()
    (library.folder / "clip1.wav").write_bytes(b"one")
    (library.folder / "clip1.txt").write_text("Words beside it.")
    (library.folder / "more" / "clip2.mp3").write_bytes(b"two")
    (library.folder / "plain.wav").write_bytes(b"three")
    return library


def test_presets_of_bosons_server_are_voices(boson: VoiceLibrary) -> None:
    assert seen(boson) == {
        "bob": (b"one", "I am Bob."),
        "rob": (b"two", "I am Rob."),
        "twin": (b"one", "Words beside it."),
        "plain": (b"three", None),
    }
    assert all(voice.version for voice in boson.list())


def test_presets_are_changed_and_removed_and_leave_the_others_alone(boson: VoiceLibrary) -> None:
    boson.delete("bob")
    boson.update("rob", new_name="robert", transcript="I was Rob.")
    assert seen(boson) == {
        "robert": (b"two", "I was Rob."),
        "twin": (b"one", "Words beside it."),
        "plain": (b"three", None),
    }
    boson.put("twin", b"new", "New.", replace=True)
    assert seen(boson).keys() == {"robert", "twin", "plain"}
    assert boson.get("twin").recording == b"new"
    assert json.loads((boson.folder / "config.json").read_text()).keys() == {"gone", "thief", "root", "drive", "odd"}


def test_a_clip_of_a_preset_is_not_overwritten(boson: VoiceLibrary) -> None:
    for replace in (False, True):
        with pytest.raises(AlreadyExists, match="bob"):
            boson.put("clip1", b"new", None, replace=replace)
    assert boson.get("bob").recording == b"one"
    presets(boson, {"bob": {"audio_file": "bob.wav"}, "twin": {"audio_file": "bob.wav"}})
    (boson.folder / "bob.wav").write_bytes(b"both")
    with pytest.raises(AlreadyExists, match="twin"):
        boson.put("bob", b"new", None, replace=True)
    assert boson.get("twin").recording == b"both"


@pytest.mark.parametrize("table", ["", "{", "[]", "null", "\x00", '{"a": 1}', '{"a": {"audio_file": ""}}'])
def test_a_config_that_names_no_voices_harms_nobody(library: VoiceLibrary, table: str) -> None:
    presets(library, table)
    library.put("anna", b"a", None)
    assert seen(library) == {"anna": (b"a", None)}
    library.delete("anna")
    assert (library.folder / "config.json").read_text() == table


def test_a_listing_holds_no_recordings(library: VoiceLibrary) -> None:
    library.put("anna", b"a", None)
    assert library.list() == [Voice("anna", None, library.folder / "anna.wav", version=library.get("anna").version)]


@pytest.mark.parametrize("lost", ["anna.wav", "anna.txt", "config.json"])
def test_a_file_that_cannot_be_read_is_not_taken_for_none(
    boson: VoiceLibrary, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    boson.put("anna", b"a", "A.")
    before = {name: (boson.folder / name).read_bytes() for name in files(boson) if (boson.folder / name).is_file()}
    real = Folder.open

    def failing(self: Folder, name: str, version: str | None) -> bytes:
        if name == lost:
            raise PermissionError(13, "Permission denied")
        return real(self, name, version)

    with monkeypatch.context() as patched:
        patched.setattr(Folder, "open", failing)
        refused = [lambda: boson.update("anna", new_name="bert"), lambda: boson.delete("anna")]
        if lost != "config.json":
            refused.append(lambda: boson.get("anna"))
        for attempt in refused:
            with pytest.raises(StorageFailed, match=f"{lost} .*Permission denied"):
                attempt()
        assert "anna" in {voice.name for voice in boson.list()}
    assert {name: (boson.folder / name).read_bytes() for name in before} == before
