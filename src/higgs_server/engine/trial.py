"""Kernels are compiled on the machine that runs them, so they are tried there before anything depends on them."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from typing import TypeVar

logger = logging.getLogger(__name__)

Kernels = TypeVar("Kernels")


def tried(what: str, trial: Callable[[], Kernels | None]) -> Kernels | None:
    """What a trial returns, which imports kernels and compares them with PyTorch; None where they are of no use.

    That is where the trial says so, raises, or Triton is not here. A warning then says that `what` runs without them.
    """
    # What Triton 3.9 does and 3.10 will not: a product and a sum become one instruction.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    why = "Triton is not installed"
    if importlib.util.find_spec("triton") is not None:
        try:
            if (kernels := trial()) is not None:
                return kernels
            why = "their results differ from PyTorch's"
        except Exception as error:  # whatever a compiler, a driver or a GPU can come up with
            why = f"{type(error).__name__}: {error}"
    logger.warning("%s without kernels of their own, slower: %s", what, why)
    return None
