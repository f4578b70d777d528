"""Several files change together: whoever reads meanwhile, and whoever comes after a crash, sees all of it or none."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import shelf  # noqa: F401 - makes shelf:// known
from higgs_server.library import folder as module
from higgs_server.library.bucket import Bucket
from higgs_server.library.folder import CHANGE, LOCK, NEW, Folder, View
from higgs_server.types import StorageFailed
from unit.library.changes import BEFORE, CHANGES, Crash, content, fill, race


def filled(path: Path) -> Folder:
    fill(path)
    return Folder(path)


def crash_at(monkeypatch: pytest.MonkeyPatch, step: int) -> Callable[[], int]:
    """Dies at the `step`-th thing that is done to the disk; says how many there were."""
    done = 0

    def counted(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            done += 1
            if done == step:
                raise Crash
            return real(*args, **kwargs)

        return call

    for name in ("replace", "fsync"):
        monkeypatch.setattr(module.os, name, counted(getattr(os, name)))
    monkeypatch.setattr(Path, "unlink", counted(Path.unlink))
    return lambda: done


@pytest.mark.parametrize("change", CHANGES)
def test_a_crash_at_any_point_leaves_the_old_or_the_new(
    change: dict[str, bytes | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = {name: data for name, data in {**BEFORE, **change}.items() if data is not None}
    outcomes = []
    step = 0
    while True:
        step += 1
        path = tmp_path / str(step)
        folder = filled(path)
        with monkeypatch.context() as patched, folder.locked():
            count = crash_at(patched, step)
            with contextlib.suppress(Crash):
                folder.change(change)
            finished = count() < step
        seen_locked_out = _seen_while_locked(path)
        after = content(Folder(path))
        assert seen_locked_out == after
        assert after in (BEFORE, new), step
        outcomes.append(after == new)
        # The next one clears away what was left.
        with Folder(path).locked():
            Folder(path).change({"later.txt": b"later"})
        assert content(Folder(path)) == {**after, "later.txt": b"later"}
        assert sorted(file.name for file in path.iterdir() if file.name.startswith(".")) == [LOCK]
        if finished:
            break
    # First it has not happened, from some point on it has.
    assert outcomes == sorted(outcomes)
    assert outcomes[0] is False
    assert outcomes[-1] is True


def _seen_while_locked(path: Path) -> dict[str, bytes | None]:
    """What a reader sees where nobody lets it clear up."""
    with (path / LOCK).open("ab") as lock:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX)
        return content(Folder(path))


def test_writers_at_once_lose_nothing_and_readers_see_no_mixture(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "deep" / "folder")
    race(lambda: folder, turns=25)


def test_versions_change_with_the_content(tmp_path: Path) -> None:
    folder = filled(tmp_path)
    first = folder.read(lambda view: view.versions)
    assert set(first) == set(BEFORE)
    assert folder.read(lambda view: view.versions) == first
    with folder.locked():
        folder.change({"a.wav": BEFORE["a.wav"]})
    second = folder.read(lambda view: view.versions)
    assert second["a.wav"] != first["a.wav"]
    assert second["other.wav"] == first["other.wav"]


def test_a_change_that_leads_out_of_the_folder_is_none(tmp_path: Path) -> None:
    folder = filled(tmp_path / "in")
    outside = tmp_path / "outside.txt"
    outside.write_text("mine")
    for change in ({"../outside.txt": None}, {"a.wav": "../outside.txt"}, {"a.wav": str(outside)}, ["x"], "x", 7):
        (folder.path / CHANGE).write_text(json.dumps(change))
        assert content(folder) == BEFORE
        with folder.locked():
            pass
        assert outside.read_text() == "mine"


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert content(Folder(tmp_path / "file")) == content(Folder(tmp_path / "nothing")) == {}
    with pytest.raises(StorageFailed, match="cannot be written"), Folder(tmp_path / "file").locked():
        pass
    folder = filled(tmp_path / "in")
    (folder.path / "b.wav").mkdir()
    with pytest.raises(StorageFailed), folder.locked():
        folder.change({"a.wav": b"new", "b.wav": b"new"})
    assert content(folder) == BEFORE


def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = filled(tmp_path)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module.os, "fsync", full)
        with pytest.raises(StorageFailed, match="No space left"), folder.locked():
            folder.change({"a.wav": b"new", "a.txt": b"new"})
    assert content(folder) == BEFORE
    with folder.locked():
        assert not list(tmp_path.glob(f"{NEW}*"))


def test_hidden_files_are_not_seen(tmp_path: Path) -> None:
    folder = filled(tmp_path)
    (tmp_path / ".hidden.wav").write_bytes(b"x")
    (tmp_path / f"{NEW}1234").write_bytes(b"x")

    def seen(view: View) -> set[str]:
        return set(view.versions)

    assert folder.read(seen) == set(BEFORE)


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_a_writer_reads_what_does_not_hold_still_and_waits_for_nobody(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = filled(tmp_path) if kind == "folder" else Bucket(f"shelf://{filled(tmp_path).path}")
    real, scans = folder._scan, count()
    monkeypatch.setattr(folder, "_scan", lambda: {**real(), ".restless": str(next(scans))})

    def write() -> None:
        with folder.locked():
            seen.append(content(folder))

    seen: list[dict[str, bytes | None]] = []
    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    writer.join(60)
    assert seen == [BEFORE]
    assert content(folder) == BEFORE


def test_a_file_that_is_lost_while_others_change_is_no_failure(tmp_path: Path) -> None:
    folder = filled(tmp_path)

    def use(view: View) -> bytes | None:
        (tmp_path / "a.wav").unlink(missing_ok=True)
        return view.content("a.wav")

    assert folder.read(use) is None
