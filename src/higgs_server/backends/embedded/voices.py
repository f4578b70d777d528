"""The eight voices that ship with the server: their names and what the network needs to speak with them.

Knows no network. `tools/build_voices.py` makes `voices.npz` out of Kokoro's voice packs (see NOTICE).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Literal

import numpy as np
import numpy.typing as npt

from higgs_server.text.language import Language


@dataclass(frozen=True, slots=True)
class EmbeddedVoice:
    """`name` is what a request says, `pack` Kokoro's name. Any voice speaks both languages, with its accent."""

    name: str
    pack: str
    language: Language
    gender: Literal["feminine", "masculine"]

    @property
    def british(self) -> bool:
        """Whether English is pronounced the British way; Kokoro's packs say so by their first letter."""
        return self.pack.startswith("b")


# In the order in which several speakers get them when none is asked for: feminine and masculine by turns.
_ALL = (
    EmbeddedVoice("belinda", "af_heart", "en", "feminine"),
    EmbeddedVoice("en_man", "am_michael", "en", "masculine"),
    EmbeddedVoice("mabel", "bf_emma", "en", "feminine"),
    EmbeddedVoice("chadwick", "bm_george", "en", "masculine"),
    EmbeddedVoice("en_woman", "af_river", "en", "feminine"),
    EmbeddedVoice("zh_woman", "zf_xiaoxiao", "zh", "feminine"),
    EmbeddedVoice("zh_man", "zm_yunxi", "zh", "masculine"),
    EmbeddedVoice("zh_girl", "zf_xiaoyi", "zh", "feminine"),
)
VOICES = {voice.name: voice for voice in _ALL}


def default_voice(language: Language, speaker: int = 0) -> EmbeddedVoice:
    """The voice of the `speaker`-th speaker (from 0) of a language, where the request names none."""
    voices = [voice for voice in _ALL if voice.language == language]
    return voices[speaker % len(voices)]


def style(voice: EmbeddedVoice, tokens: int) -> npt.NDArray[np.float32]:
    """What makes the network speak with this voice [256], for a call of `tokens` phoneme ids (1 to 510)."""
    row: npt.NDArray[np.float32] = _packs()[voice.name][tokens - 1].astype(np.float32)
    return row


@lru_cache(1)
def _packs() -> dict[str, npt.NDArray[np.float16]]:
    """Voice name -> float16 [510, 256]: one row a length of text."""
    with files(__package__).joinpath("voices.npz").open("rb") as file, np.load(file) as packs:
        return dict(packs)
