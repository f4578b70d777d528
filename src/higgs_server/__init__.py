"""higgs-audio-server: a self-hosted speech server around Higgs Audio v2.

Importing this package loads no model library and no web framework; both come when they are needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Speech", "SpeechError", "SpeechRequest", "Synthesizer", "__version__"]

if TYPE_CHECKING:
    from higgs_server.synthesizer import Synthesizer
    from higgs_server.types import Speech, SpeechError, SpeechRequest


def __getattr__(name: str) -> Any:
    if name == "Synthesizer":
        from higgs_server.synthesizer import Synthesizer

        return Synthesizer
    if name in ("Speech", "SpeechError", "SpeechRequest"):
        from higgs_server import types

        return getattr(types, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
