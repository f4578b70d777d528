"""Object storage as fsspec sees it, on a local folder: `shelf://DIR`. For tests across processes, without a cloud.

An object appears whole or not at all, one can be created only where there is none, and its ETag is its content's. There
is no rename and no lock.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem


class Shelf(LocalFileSystem):
    """Only what a bucket does: list, info, get, put, copy, remove."""

    protocol = "shelf"

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return str(path).removeprefix("shelf://").rstrip("/")

    def ls(self, path: str, detail: bool = False, **_: Any) -> Any:
        names = [name for name in os.listdir(path) if not name.endswith(".part")]
        found = [self._info(f"{path}/{name}") for name in names]
        return [entry for entry in found if entry] if detail else [entry["name"] for entry in found if entry]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        entry = self._info(path)
        if entry is None:
            raise FileNotFoundError(path)
        return entry

    def cat_file(self, path: str, start: Any = None, end: Any = None, **_: Any) -> bytes:
        return Path(path).read_bytes()

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        part = Path(f"{path}.{secrets.token_hex(4)}.part")
        part.write_bytes(value)
        try:
            if mode != "create":
                part.replace(path)
                return
            try:
                os.link(part, path)
            except FileExistsError:
                raise OSError(errno.EINVAL, "a precondition failed") from None  # s3fs' words for it
        finally:
            part.unlink(missing_ok=True)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        self.pipe_file(path2, self.cat_file(path1))

    def rm_file(self, path: str) -> None:
        Path(path).unlink()

    @staticmethod
    def _info(path: str) -> dict[str, Any] | None:
        try:
            data = Path(path).read_bytes()
        except IsADirectoryError:
            return {"name": path, "size": 0, "type": "directory"}
        except FileNotFoundError:  # gone since it was listed
            return None
        return {"name": path, "size": len(data), "type": "file", "ETag": f'"{hashlib.md5(data).hexdigest()}"'}


fsspec.register_implementation("shelf", Shelf, clobber=True)
