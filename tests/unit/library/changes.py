"""Changes of several files at once, as every kind of storage has to make them: all of it or nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from higgs_server.library.folder import Folder

BEFORE = {"a.wav": b"old clip", "a.txt": b"old words", "other.wav": b"other"}
CHANGES: list[dict[str, bytes | None]] = [
    {"a.wav": b"new clip", "a.txt": b"new words"},
    {"a.wav": b"new clip", "a.txt": None},
    {"a.wav": None, "a.txt": None},
    {"a.wav": None, "a.txt": None, "b.wav": b"old clip", "b.txt": b"old words"},
    {"c.wav": b"clip"},
]


class Crash(BaseException):
    """The process dies here."""


def fill(path: Path) -> None:
    """Writes what there is BEFORE a change."""
    path.mkdir(exist_ok=True)
    for name, data in BEFORE.items():
        (path / name).write_bytes(data)


def content(folder: Folder) -> dict[str, bytes | None]:
    return folder.read(lambda view: {name: view.read(name) for name in view.versions})


def race(opened: Callable[[], Folder], turns: int) -> None:
    """Three write `a.wav` and `a.txt` together and a file a turn: readers see no mixture, nothing is lost."""
    ended = threading.Event()

    def write(writer: int) -> None:
        folder = opened()
        for turn in range(turns):
            both = f"{writer}-{turn}".encode() if turn % 7 else None
            with folder.locked():
                folder.change({f"{writer}-{turn}.wav": b"kept", "a.wav": both, "a.txt": both})

    def read(_: int) -> int:
        folder = opened()
        seen = set()
        while not ended.is_set():
            clip, words = folder.read(lambda view: (view.read("a.wav"), view.read("a.txt")))
            assert clip == words
            seen.add(clip)
        return len(seen)

    with ThreadPoolExecutor(5) as pool:
        readers = [pool.submit(read, number) for number in range(2)]
        try:
            list(pool.map(write, range(3)))
        finally:
            ended.set()
        assert max(reader.result() for reader in readers) > 1
    kept = content(opened()).keys() - {"a.wav", "a.txt"}
    assert kept == {f"{writer}-{turn}.wav" for writer in range(3) for turn in range(turns)}
