"""A folder in storage that many machines see, by fsspec: s3, gs and whatever else has an implementation.

The same files, changed together in the same way as in folder.py: there too one small object that appears at once says
what takes whose place. What such storage lacks is a lock, so an object that only one can create stands for it.
Contents are kept by version, so a recording travels once to each process.
"""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from errno import EIO
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from higgs_server.library.folder import LOCK, NEW, Folder
from higgs_server.types import StorageFailed

Result = TypeVar("Result")

LEASE_SECONDS = 60.0
"""Whoever holds the lock for so long has died: a change takes a few requests."""
CACHE_BYTES = 128 * 2**20
_BROKEN = f"{LOCK}-broken-"
_BROKEN_SECONDS = 86_400
"""Nobody waits so long for a holder that is dead."""
_TRY_AGAIN = 0.05
_ATTEMPTS = 4


class Bucket(Folder):
    """A `Folder` at an fsspec URL. Safe between threads, processes and machines."""

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        super().__init__(Path())
        self.url = url
        # What others have written counts at once: no listing is kept.
        self._fs, self._root = url_to_fs(url, use_listings_cache=False)
        self._kept: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._guard = threading.Lock()

    def open(self, name: str, version: str | None) -> bytes:
        """From memory where that version was read before."""
        key = (name, version or "")
        with self._guard:
            if version is not None and key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        content: bytes = self._ask(self._fs.cat_file, self._at(name))
        # Kept only as what it is: it may have changed since the version was seen.
        if version is not None and self.version(name) == version:
            with self._guard:
                self._kept[key] = content
                while sum(map(len, self._kept.values())) > CACHE_BYTES:
                    self._kept.popitem(last=False)
        return content

    def version(self, name: str) -> str | None:
        """By content where the storage tells it (an ETag or a checksum)."""
        try:
            return _version(self._ask(self._fs.info, self._at(name)))
        except FileNotFoundError:
            return None

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        mine = secrets.token_hex(8)
        try:
            self._take_lock(mine.encode())
            try:
                self._finish()
                yield
            finally:
                with suppress(OSError):
                    if self.open(LOCK, None) == mine.encode():
                        self._remove(LOCK)
        except OSError as error:
            raise self._failed(error, "written") from error

    def _take_lock(self, mine: bytes) -> None:
        holder, since, leases = b"", time.monotonic(), 0
        while not self._create(LOCK, mine):
            found = b""
            with suppress(FileNotFoundError):
                found = self.open(LOCK, None)
            if found != holder or not found:
                holder, since, leases = found, time.monotonic(), 0
            elif time.monotonic() - since > LEASE_SECONDS:
                since, leases = time.monotonic(), leases + 1
                self._break_lock(holder, leases)
            time.sleep(_TRY_AGAIN * (1 + random.random()))

    def _break_lock(self, holder: bytes, leases: int) -> None:
        """Only one of those who wait does it, or the next holder's lock would go too.

        Once another lease has been waited for, whoever was to do it has failed or died over it.
        """
        now = int(time.time())
        if not self._create(f"{_BROKEN}{holder.decode(errors='replace')}-{leases}", b"%d" % now):
            return
        self._remove(LOCK)
        for name in [name for name in self._scan() if name.startswith(_BROKEN)]:
            with suppress(FileNotFoundError):
                if now - int(self.open(name, None)) > _BROKEN_SECONDS:
                    self._remove(name)

    def _create(self, name: str, content: bytes) -> bool:
        """False where there is such an object already. Raises OSError where there can be none."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._ask(self._fs.pipe_file, self._at(name), content, mode="create")
            except FileExistsError:
                return False
            except OSError:
                # S3 calls a failed precondition something else, and the object may be gone by now.
                if self.version(name) is not None:
                    return False
                if attempt == _ATTEMPTS:
                    raise
            else:
                return True
        return False

    def _finish_if_abandoned(self) -> None:
        """Readers see through a change that is under way; the next writer finishes it."""

    def _is_folder(self, name: str) -> bool:
        return False

    def _write_new(self, content: bytes) -> str:
        name = NEW + secrets.token_hex(8)
        self._ask(self._fs.pipe_file, self._at(name), content)
        return name

    def _move(self, name: str, place: str) -> None:
        self._ask(self._fs.cp_file, self._at(name), self._at(place))
        self._remove(name)

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._ask(self._fs.rm_file, self._at(name))

    def _scan(self) -> dict[str, str]:
        try:
            entries = self._ask(self._fs.ls, self._root, detail=True)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise self._failed(error, "read") from error
        files = (entry for entry in entries if entry["type"] == "file")
        return {entry["name"].rpartition("/")[2]: _version(entry) for entry in files}

    def _sync(self) -> None:
        """An object that was put is there."""

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _ask(self, call: Callable[..., Result], *args: Any, **options: Any) -> Result:
        """Implementations raise errors of their own besides OSError."""
        try:
            return call(*args, **options)
        except OSError:
            raise
        except Exception as error:
            raise OSError(EIO, f"{type(error).__name__}: {error}") from error

    def _failed(self, error: OSError, done: str) -> StorageFailed:
        why = error.strerror or str(error) or type(error).__name__
        return StorageFailed(
            f"{self.url} cannot be {done} ({why}). Check its address and the server's rights there.",
            f"无法访问 {self.url}（{why}）。请检查地址和访问权限。",
        )


@cache
def bucket(url: str) -> Bucket:
    """One for each URL of a process, so that all its users share what was read."""
    return Bucket(url.rstrip("/"))


def _version(entry: Mapping[str, Any]) -> str:
    for name in ("ETag", "etag", "md5Hash", "crc32c", "generation"):
        if entry.get(name):
            return str(entry[name]).strip('"')
    when = next((entry[name] for name in ("mtime", "created", "LastModified", "last_modified") if entry.get(name)), "")
    return f"{when}-{entry.get('ino', '')}-{entry.get('size')}"
