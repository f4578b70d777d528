"""Scenes: a folder of short descriptions of the place the speech is heard in."""

from __future__ import annotations

from functools import partial
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from higgs_server.library.folder import Folder, View, layers, text
from higgs_server.library.names import check_name, check_new_name, not_found
from higgs_server.settings import shipped_examples
from higgs_server.types import DEFAULT_SCENE, InvalidRequest, Scene


class SceneLibrary:
    """`NAME.txt` files in one folder, and in the one that ships below a default one; read at every call.

    The default scene is in every library, as it ships unless the folder has its own: a request names it by saying
    nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._layers = layers(folder)

    def list(self) -> list[Scene]:
        """All scenes by name; empty files are left out."""
        found: dict[str, Scene] = {}
        for folder in reversed(self._layers):
            found |= folder.read(partial(_scenes, folder))
        if DEFAULT_SCENE not in found and (default := _shipped_default()):
            found[default.name] = default
        return [found[name] for name in sorted(found)]

    def get(self, name: str | None, param: str = "scene_prompt") -> Scene | None:
        """None, "" and "empty" are no scene. Raises NotFound naming the scenes that exist, StorageFailed for a
        file that cannot be read."""
        if name is None or name.strip() in ("", "empty"):
            return None
        name = check_name(name, param)
        for folder in self._layers:
            scene = folder.read(partial(_scene, folder, name))
            if scene is not None:
                return scene
        if name == DEFAULT_SCENE:
            return _shipped_default()
        raise not_found("scene", "场景", name, [scene.name for scene in self.list()], param)

    def put(self, name: str, content: str, param: str) -> Scene:
        """Writes a scene, over one of the same name. Raises InvalidRequest where it is empty or has no name."""
        name = check_new_name(name, param)
        if not content.strip() or name == "empty":
            raise InvalidRequest(
                f"{param}: a scene needs words, and a name other than 'empty'.",
                f"参数 {param}：场景不能没有文字，也不能叫 'empty'。",
                param=param,
            )
        with self._layers[0].locked():
            self._layers[0].change({f"{name}.txt": f"{content.strip()}\n".encode()})
        return Scene(name, content.strip(), self.folder / f"{name}.txt")


def _shipped_default() -> Scene | None:
    shipped = shipped_examples(Path("examples/scene_prompts"))
    if shipped is None:
        return None
    folder = Folder(shipped, shipped=True)
    return folder.read(partial(_scenes, folder)).get(DEFAULT_SCENE)


def _scenes(folder: Folder, view: View) -> dict[str, Scene]:
    found = (_as_scene(folder, name, file, view.read(file)) for name, file in _files(view).items())
    return {scene.name: scene for scene in found if scene}


def _scene(folder: Folder, name: str, view: View) -> Scene | None:
    file = _files(view).get(name)
    return _as_scene(folder, name, file, view.content(file)) if file else None


def _as_scene(folder: Folder, name: str, file: str, content: bytes | None) -> Scene | None:
    words = text(content)
    return Scene(name, words, folder.path / file) if words else None


def _files(view: View) -> dict[str, str]:
    """File by the name of its scene."""
    files = (file for file in sorted(view.versions) if file.endswith(".txt"))
    return {normalize("NFC", PurePosixPath(file).stem): file for file in files}
