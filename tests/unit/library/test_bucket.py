"""Storage without locks and renames: a change is there whole or not at all, and nobody's is lost."""

from __future__ import annotations

import contextlib
import errno
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from higgs_server.library import bucket as module
from higgs_server.library.bucket import Bucket, bucket
from higgs_server.library.folder import LOCK
from higgs_server.library.profiles import ProfileLibrary
from higgs_server.library.voices import VoiceLibrary
from higgs_server.settings import BadSettings, Settings
from higgs_server.types import NotFound, StorageFailed
from shelf import Shelf
from unit.library.changes import BEFORE, CHANGES, Crash, content, fill, race

WRITES = ("pipe_file", "cp_file", "rm_file")


def filled(path: Path) -> Bucket:
    fill(path)
    return Bucket(f"shelf://{path}")


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEASE_SECONDS", 0.1)


@pytest.mark.parametrize("change", CHANGES)
def test_a_crash_at_any_point_leaves_the_old_or_the_new(
    change: dict[str, bytes | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_lease: None
) -> None:
    new = {name: data for name, data in {**BEFORE, **change}.items() if data is not None}
    outcomes = []
    finished = False
    while not finished:
        path = tmp_path / str(len(outcomes))
        dying = filled(path)
        left = len(outcomes)

        def counted(real: Any) -> Any:
            def call(*args: Any, **options: Any) -> Any:
                nonlocal left
                if left == 0:
                    raise Crash
                left -= 1
                return real(*args, **options)

            return call

        for name in WRITES:
            monkeypatch.setattr(dying._fs, name, counted(getattr(Shelf(), name)))
        finished = True
        try:
            with dying.locked():
                dying.change(change)
        except Crash:
            finished = False
        after = content(Bucket(f"shelf://{path}"))
        assert after in (BEFORE, new), len(outcomes)
        outcomes.append(after == new)
        heir = Bucket(f"shelf://{path}")
        for name in WRITES:
            monkeypatch.setattr(heir._fs, name, getattr(Shelf(skip_instance_cache=True), name))
        with heir.locked():
            heir.change({"later.txt": b"later"})
        assert content(heir) == {**after, "later.txt": b"later"}
        left_behind = {file.name for file in path.iterdir() if file.name.startswith(".")}
        assert {name for name in left_behind if not name.startswith(f"{LOCK}-broken-")} == set()
    assert outcomes == sorted(outcomes)
    assert (outcomes[0], outcomes[-1]) == (False, True)


def test_writers_at_once_lose_nothing_and_readers_see_no_mixture(tmp_path: Path) -> None:
    race(lambda: Bucket(f"shelf://{tmp_path}/deep/bucket"), turns=6)


def test_a_lock_of_the_dead_is_broken_once(tmp_path: Path, short_lease: None) -> None:
    (tmp_path / LOCK).write_bytes(b"dead")
    (tmp_path / f"{LOCK}-broken-long ago").write_bytes(b"1600000000")
    inside = threading.Semaphore(1)

    def write(number: int) -> None:
        with Bucket(f"shelf://{tmp_path}").locked():
            assert inside.acquire(blocking=False)
            inside.release()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert [file.name for file in tmp_path.iterdir()] == [f"{LOCK}-broken-dead-1"]


def test_whoever_cannot_break_a_lock_leaves_it_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_lease: None
) -> None:
    (tmp_path / LOCK).write_bytes(b"dead")
    storage = Bucket(f"shelf://{tmp_path}")
    with monkeypatch.context() as away:
        away.setattr(storage._fs, "rm_file", lambda path: (_ for _ in ()).throw(OSError(errno.EIO, "for a moment")))
        with pytest.raises(StorageFailed), storage.locked():
            pass
    with storage.locked():
        assert (tmp_path / LOCK).read_bytes() != b"dead"
    assert not (tmp_path / LOCK).exists()


def test_a_recording_travels_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = filled(tmp_path / "in")
    fetched: list[str] = []
    real = Shelf.cat_file
    monkeypatch.setattr(Shelf, "cat_file", lambda self, path: (fetched.append(Path(path).name), real(self, path))[1])
    for _ in range(3):
        assert folder.read(lambda view: view.read("a.wav")) == b"old clip"
    assert fetched == ["a.wav"]
    (tmp_path / "in" / "a.wav").write_bytes(b"new clip")
    assert folder.read(lambda view: view.read("a.wav")) == b"new clip"
    monkeypatch.setattr(module, "CACHE_BYTES", 4)
    folder.read(lambda view: view.read("a.txt"))
    fetched.clear()
    folder.read(lambda view: view.read("a.wav"))
    assert fetched == ["a.wav"]


def test_libraries_live_there_as_in_a_folder(tmp_path: Path) -> None:
    one, other = (VoiceLibrary(f"shelf://{tmp_path}/voices") for _ in range(2))
    assert one.list() == []
    one.put("小红", b"RIFF", "你好。")
    assert (other.get("小红").recording, other.get("小红").transcript) == (b"RIFF", "你好。")
    other.update("小红", new_name="red")
    assert [voice.name for voice in one.list()] == ["red"]
    one.delete("red")
    with pytest.raises(NotFound):
        other.get("red")
    profiles = ProfileLibrary(f"shelf://{tmp_path}/voices")
    profiles.add("narrator", "An old man.")
    assert ProfileLibrary(f"shelf://{tmp_path}/voices").get("narrator").description == "An old man."


def test_storage_in_memory_works_too() -> None:
    folder = bucket("memory://voices")
    assert bucket("memory://voices") is folder
    with folder.locked():
        folder.change({"a.wav": b"clip", "a.txt": b"words"})
    assert content(folder) == {"a.wav": b"clip", "a.txt": b"words"}


def test_storage_that_fails_is_told_not_taken_for_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = filled(tmp_path / "in")

    def unreachable(*_: object, **__: object) -> None:
        raise RuntimeError("no route to host")

    monkeypatch.setattr(Shelf, "ls", unreachable)
    with pytest.raises(StorageFailed, match=r"shelf://.*cannot be read .*no route to host"):
        content(folder)
    monkeypatch.setattr(Shelf, "pipe_file", unreachable)
    with pytest.raises(StorageFailed, match="cannot be written"), folder.locked():
        pass


def test_settings_tell_folders_from_urls(tmp_path: Path) -> None:
    assert Settings(voice_prompts_dir="some/dir").voice_prompts_dir == Path("some/dir")
    assert Settings(voice_prompts_dir=f"file://{tmp_path}").voice_prompts_dir == tmp_path
    assert Settings(voice_prompts_dir="memory://voices").voice_prompts_dir == "memory://voices"
    assert Settings.from_cli(["--voice-prompts-dir", "memory://x"], program="p").voice_prompts_dir == "memory://x"
    with contextlib.suppress(BadSettings):
        Settings(voice_prompts_dir="nonsense://x")
        pytest.fail("taken")
