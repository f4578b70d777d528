"""The embedded voice: a small model that speaks on any machine, from packages alone. Not Higgs Audio.

Light to import: onnxruntime and the weights come with `load`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from higgs_server.types import LoadOptions, Progress

if TYPE_CHECKING:
    from higgs_server.engine.interface import Backend


def load(options: LoadOptions, progress: Progress) -> Backend:
    """Reads the weights and returns a backend that can speak. Raises LoadError where a package is missing.

    It always runs on the CPU, in the form the weights have: device, dtype and quantization say nothing here.
    """
    from higgs_server.backends.embedded.backend import EmbeddedBackend

    return EmbeddedBackend.load(options, progress)
