"""Profiles: voices described in words, in `profile.yaml` beside the voices' clips."""

from __future__ import annotations

import logging
from typing import Any

import yaml

from higgs_server.library.folder import layers
from higgs_server.library.names import check_name, check_new_name, not_found
from higgs_server.settings import Location
from higgs_server.types import AlreadyExists, InvalidRequest, Profile, ReadOnly, StorageFailed

log = logging.getLogger(__name__)

PROFILE_FILE = "profile.yaml"
PROFILE_PREFIX = "profile:"
MAX_DESCRIPTION = 2_000
"""Characters; a description is part of every prompt."""


class ProfileLibrary:
    """`profiles:` of one YAML file, each `NAME: description`; the file is read at every call.

    Below a default folder lies the file that ships, of which entries can be replaced but not removed.
    """

    def __init__(self, folder: Location) -> None:
        self.file = f"{folder}/{PROFILE_FILE}" if isinstance(folder, str) else folder / PROFILE_FILE
        self._layers = layers(folder)

    def list(self) -> list[Profile]:
        """All profiles by name. A file that is no YAML mapping counts as empty, with a warning in the log.

        Raises StorageFailed where the file cannot be read.
        """
        found: dict[str, str] = {}
        for folder in reversed(self._layers):
            data = folder.read(lambda view: view.content(PROFILE_FILE))
            try:
                found |= _descriptions(_parse(data))
            except ValueError as error:
                log.warning("%s cannot be read: %s", folder.path / PROFILE_FILE, error)
        return [Profile(name, description) for name, description in sorted(found.items())]

    def get(self, name: str, param: str = "ref_audio") -> Profile:
        """Raises NotFound naming the profiles that exist."""
        name = check_name(name, param)
        profiles = {profile.name: profile for profile in self.list()}
        if name not in profiles:
            raise not_found("profile", "音色描述", name, sorted(profiles), param)
        return profiles[name]

    def add(self, name: str, description: str) -> Profile:
        """Raises AlreadyExists, and InvalidRequest for what is no name or no description."""
        name = check_new_name(name, "name")
        with self._layers[0].locked():
            if name in {profile.name for profile in self.list()}:
                raise AlreadyExists(
                    f"There is a profile {name!r} already. Take another name, or change it with PUT.",
                    f"音色描述 {name!r} 已存在：请换一个名称，或用 PUT 修改。",
                    param="name",
                )
            return self._write(name, _checked(description))

    def update(self, name: str, description: str) -> Profile:
        """Raises NotFound, and InvalidRequest for what is no description."""
        with self._layers[0].locked():
            return self._write(self.get(name, "name").name, _checked(description))

    def delete(self, name: str) -> Profile:
        """Raises NotFound, and ReadOnly for one that only ships."""
        with self._layers[0].locked():
            profile = self.get(name, "name")
            data = self._layers[0].read(lambda view: view.content(PROFILE_FILE))
            if profile.name not in _descriptions(self._own(data)):
                raise ReadOnly(
                    f"{profile.name!r} ships with the server and cannot be removed; PUT changes it.",
                    f"{profile.name!r} 随服务器附带，不能删除，可用 PUT 修改。",
                    param="name",
                )
            self._layers[0].change({PROFILE_FILE: _edited(data, self._own(data), profile.name, None)})
            return profile

    def _write(self, name: str, description: str) -> Profile:
        data = self._layers[0].read(lambda view: view.content(PROFILE_FILE))
        self._layers[0].change({PROFILE_FILE: _edited(data, self._own(data), name, description)})
        return Profile(name, description)

    def _own(self, data: bytes | None) -> dict[str, Any]:
        try:
            return _parse(data)
        except ValueError as error:
            raise StorageFailed(
                f"{self.file} is left alone, because it cannot be read: {error}. Mend it first.",
                f"{self.file} 无法解析（{error}），请先修复。",
            ) from None


def _checked(description: str) -> str:
    words = " ".join(description.split())
    if not 0 < len(words) <= MAX_DESCRIPTION:
        raise InvalidRequest(
            f"description: say in 1 to {MAX_DESCRIPTION} characters what the voice is like.",
            f"参数 description：请用 1 至 {MAX_DESCRIPTION} 个字符描述音色。",
            param="description",
        )
    return words


def _parse(data: bytes | None) -> dict[str, Any]:
    """The whole file. Raises ValueError where it has no mapping `profiles`."""
    if data is None or not data.strip():
        return {"profiles": {}}
    try:
        content = yaml.safe_load(data.decode("utf-8-sig"))
    except yaml.YAMLError as error:
        raise ValueError(type(error).__name__) from None
    if isinstance(content, dict) and content.get("profiles", 0) is None:
        content["profiles"] = {}
    if not isinstance(content, dict) or not isinstance(content.get("profiles"), dict):
        raise ValueError("it has no mapping called profiles")
    return content


def _descriptions(content: dict[str, Any]) -> dict[str, str]:
    return {str(name): " ".join(str(text).split()) for name, text in content["profiles"].items() if text}


def _edited(data: bytes | None, content: dict[str, Any], name: str, description: str | None) -> bytes:
    """The file with one entry changed, added or (None) removed; comments and everything else stay as they are."""
    wanted = {**content, "profiles": {str(key): text for key, text in content["profiles"].items() if str(key) != name}}
    if description is not None:
        wanted["profiles"][name] = description
    text = (data or b"").decode("utf-8-sig")
    edited = _spliced(text, name, description)
    # Where the text is laid out in another way than ours (flow style, anchors), it is written anew, without comments.
    try:
        same = edited is not None and _descriptions(_parse(edited.encode())) == _descriptions(wanted)
    except ValueError:
        same = False
    if not same:
        edited = yaml.safe_dump(wanted, allow_unicode=True, sort_keys=False, width=120)
    assert edited is not None
    return edited.encode()


def _spliced(text: str, name: str, description: str | None) -> str | None:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    table = next((value for key, value in pairs if key.value == "profiles"), None)
    if not isinstance(table, yaml.MappingNode) or not table.value or table.flow_style:
        return None
    indent = table.value[0][0].start_mark.column
    entry = ""
    if description is not None:
        lines = yaml.safe_dump({name: description}, allow_unicode=True, width=110).splitlines()
        entry = "".join(f"{' ' * indent}{line}\n" for line in lines)
    lines = text.splitlines(keepends=True)
    for key, value in table.value:
        if key.value == name:
            first, last = key.start_mark.line, _last_line(value)
            return "".join([*lines[:first], entry, *lines[last + 1 :]])
    end = _last_line(table.value[-1][1]) + 1
    before = "".join(lines[:end])
    return before + ("" if before.endswith("\n") else "\n") + entry + "".join(lines[end:])


def _last_line(value: yaml.Node) -> int:
    """A block scalar's end mark is the start of the line after it, and after its comments and blank lines too."""
    end = value.end_mark
    return end.line - 1 if end.column == 0 and end.line > value.start_mark.line else end.line
