"""Scenes: a folder of short descriptions of the place the speech is heard in."""

from __future__ import annotations

from pathlib import Path

from higgs_server.library.names import check_name, listed
from higgs_server.library.voices import read_text
from higgs_server.types import NotFound, Scene


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
            existing = listed(sorted(scenes))
            raise NotFound(
                f"No scene is called {name!r}. Scenes: {existing}. Use null for none.",
                f"没有名为 {name!r} 的场景。可用的场景：{existing}；不需要场景时用 null。",
                param=param,
            )
        return scenes[name]
