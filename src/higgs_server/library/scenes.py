"""Scenes: a folder of short descriptions of the place the speech is heard in."""

from __future__ import annotations

from pathlib import Path

from higgs_server.library.names import check_name, not_found
from higgs_server.library.voices import read_text
from higgs_server.types import Scene


class SceneLibrary:
    """`NAME.txt` files in one folder, read at every call."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def list(self) -> list[Scene]:
        """All scenes by name; empty files are left out."""
        if not self.folder.is_dir():
            return []
        found = ((file, read_text(file)) for file in sorted(self.folder.glob("*.txt")) if file.is_file())
        return [Scene(file.stem, content, file) for file, content in found if content]

    def get(self, name: str | None, param: str = "scene_prompt") -> Scene | None:
        """None, "" and "empty" are no scene. Raises NotFound naming the scenes that exist."""
        if name is None or name.strip() in ("", "empty"):
            return None
        name = check_name(name, param)
        scenes = {scene.name: scene for scene in self.list()}
        if name not in scenes:
            raise not_found("scene", "场景", name, sorted(scenes), param)
        return scenes[name]
