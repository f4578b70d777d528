"""Higgs Audio v2: the real model. Needs the extra `[higgs]`."""

from __future__ import annotations

from higgs_server.backends.higgs_v2.backend import HiggsBackend
from higgs_server.types import LoadOptions, Progress


def load(options: LoadOptions, progress: Progress) -> HiggsBackend:
    """Loads a checkpoint of either layout, from a hub id or a folder. Raises LoadError."""
    return HiggsBackend.load(options, progress)
