"""Reference voices: a folder of clips with their transcripts. Knows no model and decodes no sound.

The folder is read at every call, so a clip that is added or removed counts at once. Under a default folder lies the one
that ships with the server.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import PurePosixPath

from higgs_server.library import presets
from higgs_server.library.folder import Folder, View, layers, text
from higgs_server.library.names import check_name, check_new_name, not_found
from higgs_server.library.presets import Preset
from higgs_server.settings import Location
from higgs_server.types import AlreadyExists, ReadOnly, Voice

CLIP_SUFFIXES = (".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus", ".aac", ".webm")
"""In order of preference where one name has several clips."""
SHIPPED = frozenset({"belinda", "chadwick", "en_man", "en_woman", "mabel", "zh_girl", "zh_man", "zh_woman"})
"""The clips in the folder that ships which nobody changes or removes; a user's may lie beside them."""


class VoiceLibrary:
    """Clips `NAME.wav` (or another common format) with an optional transcript `NAME.txt` in one folder.

    A `config.json` of Boson's vLLM server names voices too. Safe between threads and between processes.
    """

    def __init__(self, folder: Location) -> None:
        self.folder = folder
        self._layers = layers(folder)

    def list(self) -> list[Voice]:
        """All voices by name, transcripts included; none where the folder is missing."""
        found: dict[str, Voice] = {}
        for folder in reversed(self._layers):
            found |= folder.read(partial(_voices, folder))
        return [found[name] for name in sorted(found)]

    def get(self, name: str, param: str = "ref_audio") -> Voice:
        """With its recording. Raises NotFound naming the voices that exist, InvalidRequest for what is no name, and
        StorageFailed for files that cannot be read."""
        name = check_name(name, param)
        for folder in self._layers:
            voice = folder.read(partial(_voice, folder, name))
            if voice is not None:
                return voice
        raise not_found("voice", "音色", name, [voice.name for voice in self.list()], param)

    def put(self, name: str, clip: bytes, transcript: str | None, *, replace: bool = False) -> Voice:
        """Keeps a WAV file under a name. Raises AlreadyExists unless `replace`, ReadOnly for what ships."""
        name = check_new_name(name, "name")
        own = self._layers[0]
        with own.locked():
            self._check_free(name, replace)
            self._check_file(name)
            own.change({**own.read(lambda view: _without(view, name)), **_pair(name, ".wav", clip, transcript)})
            return self.get(name, "name")

    def update(self, name: str, *, new_name: str | None = None, transcript: str | None = None) -> Voice:
        """Another name, another transcript ("" for none); None keeps it. Raises NotFound, AlreadyExists or ReadOnly."""
        new_name = check_new_name(name if new_name is None else new_name, "name")
        own = self._layers[0]
        with own.locked():
            voice = self._changeable(name)
            if new_name != voice.name:
                self._check_free(new_name, replace=False)
            self._check_file(new_name)
            words = voice.transcript if transcript is None else transcript
            assert voice.file is not None
            assert voice.recording is not None
            gone = own.read(lambda view: {**_without(view, voice.name), **_without(view, new_name)})
            own.change({**gone, **_pair(new_name, voice.file.suffix.lower(), voice.recording, words)})
            return self.get(new_name, "name")

    def delete(self, name: str) -> Voice:
        """Removes clip and transcript. Raises NotFound or ReadOnly."""
        own = self._layers[0]
        with own.locked():
            voice = self._changeable(name)
            own.change(own.read(lambda view: _without(view, voice.name)))
            return voice

    def _changeable(self, name: str) -> Voice:
        voice = self.get(name, "name")
        if voice.read_only:
            raise _read_only(voice.name)
        return voice

    def _check_free(self, name: str, replace: bool) -> None:
        known = {voice.name: voice for voice in self.list()}
        if name in known and known[name].read_only:
            raise _read_only(name)
        if name in known and not replace:
            raise AlreadyExists(
                f"There is a voice {name!r} already. Take another name, delete it, or add ?replace=true.",
                f"音色 {name!r} 已存在：请换一个名称，先删除它，或加上 ?replace=true。",
                param="name",
            )

    def _check_file(self, name: str) -> None:
        owner = self._layers[0].read(partial(_other_owner, name))
        if owner is not None:
            raise AlreadyExists(
                f"A file of that name is the clip of {owner!r} in {presets.FILE}. Take another name.",
                f"该名称的文件是 {presets.FILE} 中 {owner!r} 的音频，请换一个名称。",
                param="name",
            )


def _read_only(name: str) -> ReadOnly:
    return ReadOnly(
        f"{name!r} ships with the server and stays as it is. Take another name for a voice of your own.",
        f"{name!r} 是随服务器附带的音色，不能修改。请为自己的音色另取名称。",
        param="name",
    )


def _pair(name: str, suffix: str, clip: bytes, transcript: str | None) -> dict[str, bytes | None]:
    words = (transcript or "").strip()
    return {f"{name}{suffix}": clip, f"{name}.txt": f"{words}\n".encode() if words else None}


def _voices(folder: Folder, view: View) -> dict[str, Voice]:
    entries = {name: entry for name, entry in _clips(view).items() if view.version(entry.clip)}
    return {name: _as_voice(folder, view, name, entry, view.read) for name, entry in entries.items()}


def _voice(folder: Folder, name: str, view: View) -> Voice | None:
    entry = _clips(view).get(name)
    recording = view.content(entry.clip) if entry else None
    if entry is None or recording is None:
        return None
    return _as_voice(folder, view, name, entry, view.content, recording)


def _as_voice(
    folder: Folder,
    view: View,
    name: str,
    entry: Preset,
    read: Callable[[str], bytes | None],
    recording: bytes | None = None,
) -> Voice:
    return Voice(
        name,
        entry.transcript or text(read(_transcript_of(entry.clip))),
        folder.path / entry.clip,
        recording,
        version=view.version(entry.clip) or "",
        read_only=folder.shipped and name in SHIPPED,
    )


def _clips(view: View) -> dict[str, Preset]:
    """Every voice of a folder by name."""
    named = presets.read(view.read(presets.FILE))
    taken = {preset.clip for preset in named.values()}
    best: dict[str, Preset] = {}
    for file in sorted(view.versions):
        path = PurePosixPath(file)
        name = _name_of(path)
        if path.suffix.lower() not in CLIP_SUFFIXES or file in taken:
            continue
        if name not in best or _rank(file) < _rank(best[name].clip):
            best[name] = Preset(file, None)
    return {**best, **named}


def _without(view: View, name: str) -> dict[str, bytes | None]:
    """The change after which a folder has no voice of that name."""
    table = view.content(presets.FILE)
    named = presets.read(table)
    taken = {preset.clip for other, preset in named.items() if other != name}
    kept = taken | {_transcript_of(clip) for clip in taken}
    gone: dict[str, bytes | None] = {file: None for file in _files_of(view, name) if file not in kept}
    if name in named:
        gone[presets.FILE] = presets.without(table, name)
        clip = named[name].clip
        gone |= {file: None for file in (clip, _transcript_of(clip)) if file in view.versions and file not in kept}
    return gone


def _other_owner(name: str, view: View) -> str | None:
    """Whose clip in config.json is a file that this voice would have to have."""
    files = _files_of(view, name)
    named = presets.read(view.read(presets.FILE))
    return next((owner for owner, preset in named.items() if preset.clip in files and owner != name), None)


def _files_of(view: View, name: str) -> set[str]:
    suffixes = {*CLIP_SUFFIXES, ".txt"}
    paths = map(PurePosixPath, view.versions)
    return {str(path) for path in paths if path.suffix.lower() in suffixes and _name_of(path) == name}


def _name_of(path: PurePosixPath) -> str:
    # Some systems decompose the letters of a file's name.
    return unicodedata.normalize("NFC", path.stem)


def _transcript_of(clip: str) -> str:
    return str(PurePosixPath(clip).with_suffix(".txt"))


def _rank(file: str) -> int:
    return CLIP_SUFFIXES.index(PurePosixPath(file).suffix.lower())
