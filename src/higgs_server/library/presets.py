"""`config.json` as Boson's vLLM server keeps it in its folder of voice presets. Bytes in, bytes out."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

log = logging.getLogger(__name__)

FILE = "config.json"


@dataclass(frozen=True, slots=True)
class Preset:
    """A voice's clip, as a path within the folder, and what it says, None where that is not given."""

    clip: str
    transcript: str | None


@lru_cache(4)
def read(data: bytes | None) -> Mapping[str, Preset]:
    """`{NAME: {"audio_file": …, "transcript": …}}`. What is something else is left out, with one line in the log."""
    presets = {}
    for name, entry in _table(data).items():
        clip = entry.get("audio_file") if isinstance(entry, dict) else None
        if not isinstance(clip, str) or not _inside(clip):
            log.warning("%s: %r names no clip in its folder", FILE, name)
            continue
        transcript = entry.get("transcript")
        words = transcript.strip() if isinstance(transcript, str) else ""
        presets[name] = Preset(str(PurePosixPath(clip)), words or None)
    return presets


def without(data: bytes | None, name: str) -> bytes:
    """The file without one voice; everything else in it stays."""
    table = {other: entry for other, entry in _table(data).items() if other != name}
    return json.dumps(table, ensure_ascii=False, indent=2).encode()


def _table(data: bytes | None) -> Mapping[str, Any]:
    if data is None:
        return {}
    try:
        table = json.loads(data.decode("utf-8-sig"))
    except ValueError:
        table = None
    if not isinstance(table, dict):
        log.warning("%s is no mapping of voices", FILE)
        return {}
    return table


def _inside(clip: str) -> bool:
    path = PurePosixPath(clip)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and not set(clip) & set("\\:\0")
