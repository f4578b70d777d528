"""Reference clips as codec frames, encoded once: kept by the clip's content, least recently used first out."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from higgs_server.audio.decode import MAX_CLIP_SECONDS, decode
from higgs_server.engine.interface import Codec
from higgs_server.types import BadAudio, Codes, Voice

KEPT_CLIPS = 256


class ClipCodes:
    """Voices to codes [frames, codebooks]. Safe to use from many threads."""

    def __init__(self, codec: Callable[[], Codec]) -> None:
        """`codec` gives the codec; it is asked only when a clip is encoded for the first time."""
        self.hits = 0
        self.misses = 0
        self._codec = codec
        self._kept: OrderedDict[bytes, Codes] = OrderedDict()
        self._lock = threading.Lock()
        self._encoding = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, voice: Voice, *, again: bool = False) -> Codes:
        """`again`: asked for before by the same request, so no other hit.

        Raises BadAudio where the clip cannot be read or is too short for one frame.
        """
        key, samples = self._source(voice)
        if (codes := self._get(key, again)) is not None:
            return codes
        # One at a time: encoding takes every core, and a second request for the same clip finds it done.
        with self._encoding:
            if (codes := self._get(key, again)) is not None:
                return codes
            self.misses += 1
            codes = self._codec().encode(samples())
        if not len(codes):
            raise BadAudio(
                f"The clip of {voice.name} is too short. 5 to 20 seconds are best.",
                f"{voice.name} 的音频太短，5 至 20 秒效果最佳。",
                param="ref_audio",
            )
        with self._lock:
            self._kept[key] = codes
            while len(self._kept) > KEPT_CLIPS:
                self._kept.popitem(last=False)
        return codes

    def _get(self, key: bytes, again: bool) -> Codes | None:
        with self._lock:
            if key in self._kept:
                if not again:
                    self.hits += 1
                self._kept.move_to_end(key)
            return self._kept.get(key)

    @staticmethod
    def _source(voice: Voice) -> tuple[bytes, Callable[[], npt.NDArray[np.float32]]]:
        if voice.clip is not None:
            samples = voice.clip.samples
            return hashlib.sha256(samples.tobytes()).digest(), lambda: samples
        data = voice.recording or b""
        key = hashlib.sha256(data).digest()
        return key, lambda: decode(data, max_seconds=MAX_CLIP_SECONDS, param="ref_audio").samples
