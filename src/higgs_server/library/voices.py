"""Reference voices: a folder of clips with their transcripts. Knows no model and decodes no sound.

The folder is read at every call, so a clip that is added or removed counts at once.
"""

from __future__ import annotations

from pathlib import Path

from higgs_server.library.names import check_name, not_found
from higgs_server.types import Voice

CLIP_SUFFIXES = (".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus", ".aac", ".webm")
"""In order of preference where one name has several clips."""
MAX_TRANSCRIPT_BYTES = 100_000


class VoiceLibrary:
    """Clips `NAME.wav` (or another common format) with an optional transcript `NAME.txt` in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def list(self) -> list[Voice]:
        """All voices by name, transcripts included; none where the folder is missing."""
        return [self._read(name, file) for name, file in sorted(self._clips().items())]

    def get(self, name: str, param: str = "ref_audio") -> Voice:
        """Raises NotFound naming the voices that exist, InvalidRequest for what is no name."""
        name = check_name(name, param)
        clips = self._clips()
        if name not in clips:
            raise not_found("voice", "语音", name, sorted(clips), param)
        return self._read(name, clips[name])

    def _clips(self) -> dict[str, Path]:
        if not self.folder.is_dir():
            return {}
        best: dict[str, Path] = {}
        for file in self.folder.iterdir():
            suffix = file.suffix.lower()
            if suffix not in CLIP_SUFFIXES or file.name.startswith(".") or not file.is_file():
                continue
            other = best.get(file.stem)
            if other is None or CLIP_SUFFIXES.index(suffix) < CLIP_SUFFIXES.index(other.suffix.lower()):
                best[file.stem] = file
        return best

    def _read(self, name: str, file: Path) -> Voice:
        return Voice(name, read_text(file.with_suffix(".txt")), file)


def read_text(file: Path) -> str | None:
    """A small UTF-8 text (with or without BOM), stripped; None where it is missing or empty."""
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_TRANSCRIPT_BYTES)
    except OSError:
        return None
    return data.decode("utf-8-sig", "replace").strip() or None
