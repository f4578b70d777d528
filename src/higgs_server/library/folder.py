"""A folder of files: the only place where the library touches a disk (bucket.py: other storage). No voices here.

Several files change together. Their new contents are written beside them first, then one small file (`.change`) says
which of them take whose place; it appears at once, and from then on the change has happened. Moving the files into
place is done by whoever holds the lock, by the next one after a crash, and readers do not wait for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from errno import EISDIR
from pathlib import Path
from typing import TypeVar

from higgs_server.settings import Location, shipped_examples
from higgs_server.types import StorageFailed

Result = TypeVar("Result")

CHANGE, LOCK, NEW = ".change", ".lock", ".new-"
"""What a change says it does; the file that is locked meanwhile; how contents begin that are not in place yet."""
MOST_TRIES = 50
MAX_TEXT_BYTES = 100_000


def text(data: bytes | None) -> str | None:
    """The content of a small UTF-8 file (with or without BOM), stripped; None where it is missing or empty."""
    return (data or b"")[:MAX_TEXT_BYTES].decode("utf-8-sig", "replace").strip() or None


class View:
    """A folder as it is at one moment. `versions` has its visible files; a version changes with the content."""

    def __init__(self, folder: Folder, found: Mapping[str, str], change: Mapping[str, str | None]) -> None:
        self._folder = folder
        self._found = found
        self._change = change
        self.versions = {name: version for name, version in found.items() if not name.startswith(".")}
        for name, new in change.items():
            if new is None:
                self.versions.pop(name, None)
            elif new in found:
                self.versions[name] = found[new]

    def content(self, name: str) -> bytes | None:
        """The content of a file, None where there is none. `name` may lead into a folder below, not out.

        Raises StorageFailed where there is one that cannot be read: whoever writes it anew must not take it for none.
        """
        new = self._change.get(name, name)
        for place in (new, name):
            # A file that has just moved into its place is found there.
            try:
                return None if place is None else self._folder.open(place, self._found.get(place))
            except OSError as error:
                failure = error
        if name not in self.versions:
            return None
        why = failure.strerror or type(failure).__name__
        raise StorageFailed(
            f"{name} is there, but cannot be read ({why}). Check the server's rights to it.",
            f"无法读取 {name}（{why}）。请检查访问权限。",
        ) from failure

    def read(self, name: str) -> bytes | None:
        """The content of a file, None where there is none that can be read."""
        try:
            return self.content(name)
        except StorageFailed:
            return None

    def version(self, name: str) -> str | None:
        """Of a visible file, or of one in a folder below; None where there is none."""
        if "/" not in name:
            return self.versions.get(name)
        return self._folder.version(name)


class Folder:
    """Safe between threads and between processes. A folder that does not exist is empty, until it is written to."""

    def __init__(self, path: Path, *, shipped: bool = False) -> None:
        """`shipped` says that files of the server itself lie in it."""
        self.path = path
        self.shipped = shipped
        self._writer: int | None = None
        """The thread that holds the lock."""

    def read(self, use: Callable[[View], Result]) -> Result:
        """What `use` makes of the folder at one moment. It runs again where the folder has changed meanwhile.

        So what it misses it must not raise, but return: what it saw may never have been.
        """
        for _ in range(MOST_TRIES):
            found = self._scan()
            if CHANGE in found:
                self._finish_if_abandoned()
                found = self._scan()
            try:
                result = use(View(self, found, self._change() if CHANGE in found else {}))
            except StorageFailed:
                if self._scan() == found:
                    raise
                continue
            if self._scan() == found:
                return result
        # Somebody writes without a pause: now they wait.
        with self.locked():
            return use(View(self, self._scan(), {}))

    def open(self, name: str, version: str | None) -> bytes:
        """The content of a file that was seen in that version, or of what has taken its place. Raises OSError."""
        return (self.path / name).read_bytes()

    def version(self, name: str) -> str | None:
        """Of one file; None where there is none."""
        try:
            return _version((self.path / name).stat())
        except OSError:
            return None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One writer at a time, who may lock again. Raises StorageFailed where the folder cannot be written."""
        me = threading.get_ident()
        if self._writer == me:
            yield
            return
        with self._exclusive():
            self._writer = me
            try:
                yield
            finally:
                self._writer = None

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        import fcntl

        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with (self.path / LOCK).open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._finish()
                yield
        except OSError as error:
            raise StorageFailed(
                f"{self.path} cannot be written ({error.strerror}). Free space there, or let the server write to it.",
                f"无法写入 {self.path}（{error.strerror}）。请检查磁盘空间和写入权限。",
            ) from error

    def change(self, files: Mapping[str, bytes | None]) -> None:
        """Writes files, or removes them (None): all of them, or none. Only within `locked`."""
        for name in files:
            if self._is_folder(name):
                raise IsADirectoryError(EISDIR, f"{name} is a folder")
        change = {name: None if content is None else self._write_new(content) for name, content in files.items()}
        self._sync()
        self._move(self._write_new(json.dumps(change).encode()), CHANGE)
        self._sync()
        self._finish()

    def _is_folder(self, name: str) -> bool:
        return (self.path / name).is_dir()

    def _write_new(self, content: bytes) -> str:
        name = NEW + secrets.token_hex(8)
        with (self.path / name).open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return name

    def _finish(self) -> None:
        """Moves what has been written into its place, and clears away what a crash has left."""
        change = self._change()
        # Removed first: where capitals make no difference, a new name may be an old one.
        for name in (name for name, new in change.items() if new is None):
            self._remove(name)
        for name, new in change.items():
            with contextlib.suppress(FileNotFoundError):
                if new is not None:
                    self._move(new, name)
        if change:
            self._sync()
        self._remove(CHANGE)
        for name in [name for name in self._scan() if name.startswith(NEW)]:
            self._remove(name)

    def _move(self, name: str, place: str) -> None:
        """At once, over what is there. Raises FileNotFoundError."""
        os.replace(self.path / name, self.path / place)

    def _remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def _finish_if_abandoned(self) -> None:
        import fcntl

        with contextlib.suppress(OSError), (self.path / LOCK).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._finish()

    def _change(self) -> dict[str, str | None]:
        """The change under way: the name of a file, and the one that takes its place."""
        try:
            change = json.loads(self.open(CHANGE, None))
        except (OSError, ValueError):
            return {}
        # Whoever put it there, it stays in this folder.
        names = {name for pair in change.items() for name in pair} - {None} if isinstance(change, dict) else {""}
        return change if all(isinstance(name, str) and Path(name).name == name != "" for name in names) else {}

    def _scan(self) -> dict[str, str]:
        found: dict[str, str] = {}
        with contextlib.suppress(OSError), os.scandir(self.path) as entries:
            for entry in entries:
                # One that was there a moment ago is left out.
                with contextlib.suppress(OSError):
                    if entry.is_file():
                        found[entry.name] = _version(entry.stat())
        return found

    def _sync(self) -> None:
        """Names are on the disk too."""
        handle = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def layers(path: Location) -> list[Folder]:
    """The folder itself, and below it the one that ships under the same name (in a checkout they are one)."""
    if isinstance(path, str):
        from higgs_server.library.bucket import bucket

        return [bucket(path)]
    shipped = shipped_examples(path)
    if shipped is None or shipped == path.resolve():
        return [Folder(path, shipped=shipped is not None)]
    return [Folder(path), Folder(shipped, shipped=True)]


def _version(stat: os.stat_result) -> str:
    return f"{stat.st_ino:x}-{stat.st_mtime_ns:x}-{stat.st_size:x}"
