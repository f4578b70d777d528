"""Captures as CUDA captures them, on any device: the operations of one run, done again on the same memory.

What is recorded is what reached the device. Everything that the host decided, from Python's branches to sizes and
numbers that it read, stays as it was at the capture, as in a CUDA graph; and whoever asks for a tensor's value while
capturing is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ASKS_THE_HOST = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class HostAsked(AssertionError):
    """The host would have to wait for a value, for a size, or for a copy from or to its memory."""


class Recording(TorchDispatchMode):
    """Sees every operation down to those that have a kernel. Nothing is written to memory that was there before.

    `device`: where every tensor has to be, if that matters.
    """

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        self.device = device
        self.done: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if ASKS_THE_HOST & set(func.tags):
            raise HostAsked(str(func))
        with self:  # an operation without a kernel of its own comes back here as what it is made of
            if (result := func.decompose(*args, **kwargs)) is not NotImplemented:
                return result
        if torch.Tag.inplace in func.tags:
            result = args[0]
        elif torch.Tag.out in func.tags:
            result = kwargs["out"]
        else:
            assert not func._schema.is_mutable, func
            result = func(*args, **kwargs)
        for leaf in tree_leaves((args, kwargs, result)):
            if self.device and isinstance(leaf, Tensor) and leaf.device.type != self.device:
                raise HostAsked(f"{func} with a tensor on {leaf.device}")
        if not func.is_view:  # a view shows the same memory for ever
            self.done.append((func, args, kwargs, result))
        return result

    def replay(self) -> None:
        """Does it all again: each operation reads and writes the very tensors it had."""
        for func, args, kwargs, made in self.done:
            result = func(*args, **kwargs)
            for new, old in zip(tree_leaves(result), tree_leaves(made), strict=True):
                if new is not old:
                    old.copy_(new)


class RecordedCapture:
    """Implements `engine.graphs.Capture`."""

    def __init__(self) -> None:
        self.replays = 0

    def warm_up(self, work: Callable[[], Tensor]) -> Tensor:
        """Does the work."""
        return work()

    def capture(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Raises HostAsked."""
        with Recording() as recording:
            result = work()

        def replay() -> Tensor:
            self.replays += 1
            recording.replay()
            return result

        return replay
