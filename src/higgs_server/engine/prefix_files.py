"""Kept prefixes on disk, so that a voice is prefilled once and not once a start.

One safetensors file a prefix, named by its content's hash, in a folder that belongs to one network: keys and values
mean nothing to another. A file appears whole or not at all, and what cannot be read or written is as if it were not
there. A thread of its own writes them: a step of the engine is shorter than a disk takes. Knows tensors and files; no
sequences, no devices.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

logger = logging.getLogger(__name__)

MAX_PENDING = 2
"""Prefixes that may be on their way to the disk; what comes meanwhile is not kept."""


class PrefixFiles:
    """The least recently used are removed beyond `max_bytes`."""

    def __init__(self, folder: Path, max_bytes: int = 2 * 2**30) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="prefixes")
        self._room = threading.Semaphore(MAX_PENDING)

    def get(self, key: bytes) -> torch.Tensor | None:
        """The prefix, its pages still in the file; now the most recently used."""
        file = self._file(key)
        try:
            with safe_open(file, "pt") as stored:
                prefix: torch.Tensor = stored.get_tensor("prefix")
            os.utime(file)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            logger.warning("%s cannot be read and is removed: %s", file, error)
            with suppress(OSError):
                file.unlink()
            return None
        return prefix

    def put(self, key: bytes, prefix: torch.Tensor) -> None:
        """Keeps a prefix, if the disk has room and time for it; returns at once. The tensor must not change."""
        if self._room.acquire(blocking=False):
            self._writer.submit(self._write, key, prefix).add_done_callback(lambda _: self._room.release())

    def close(self) -> None:
        """Waits until all is written. Nothing is put afterwards. Idempotent."""
        self._writer.shutdown()

    def _write(self, key: bytes, prefix: torch.Tensor) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as partial:
                try:
                    partial.write(save({"prefix": prefix}))
                    partial.close()
                    os.replace(partial.name, self._file(key))
                except BaseException:
                    os.unlink(partial.name)
                    raise
            self._trim()
        except OSError as error:
            logger.warning("a voice's prefix is not kept: %s", error)

    def _file(self, key: bytes) -> Path:
        return self._folder / f"{key.hex()}.safetensors"

    def _trim(self) -> None:
        """Removes the oldest beyond the bound, left-over partial files among them."""
        files = sorted(((file.stat(), file) for file in self._folder.iterdir()), key=lambda at: at[0].st_mtime_ns)
        total = sum(status.st_size for status, _ in files)
        for status, file in files:
            if total <= self._max_bytes:
                break
            file.unlink(missing_ok=True)
            total -= status.st_size
