"""Which network a checkpoint becomes: on which device, in which precision, quantised or not.

Knows the options and what the checkpoint holds; no engine, no codec.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from higgs_server.backends.higgs_v2.checkpoint import load_network, read_index, stored_dtype
from higgs_server.backends.higgs_v2.network import HiggsNetwork
from higgs_server.backends.higgs_v2.quantize import Quantization
from higgs_server.engine.trial import tried
from higgs_server.types import LoadError, LoadOptions, Progress

if TYPE_CHECKING:
    from higgs_server.backends.higgs_v2.fused import FusedSteps

_WORTH_QUANTIZING = 500_000_000
"""Weights above which a CPU waits for memory."""
_QUANTIZES: dict[Quantization, tuple[str, ...]] = {
    "none": ("cpu", "cuda", "mps"),
    "int8": ("cpu", "cuda"),
    "int4": ("cpu",),
}
"""Which devices can keep weights in how many bits."""


def load_model(
    folder: Path, device: torch.device, dtype: str, quantization: Quantization, progress: Progress
) -> HiggsNetwork:
    """The network of a checkpoint's folder. Raises LoadError."""
    if device.type == "cpu" and quantization != "none":
        from higgs_server.backends.higgs_v2.onnx_model import load_onnx

        return load_onnx(folder, quantization, progress)
    int8 = quantization == "int8"
    network = load_network(folder, device, choose_dtype(dtype, device, folder), progress, int8=int8)
    if device.type == "cuda":
        progress("trying kernels", 1.0)
        network.fused = tried("Decode steps run", lambda: _fused(network))
    return network


def _fused(network: HiggsNetwork) -> FusedSteps | None:
    from higgs_server.backends.higgs_v2.fused import FusedSteps

    return FusedSteps.tried(network)


def choose_quantization(options: LoadOptions, device: torch.device, folder: Path) -> Quantization:
    """auto is int8 on a CPU, unless a dtype is asked for or the model is small. Raises LoadError where it cannot be."""
    wanted = options.quantization
    if wanted == "auto":
        large = sum(math.prod(stored.shape) for stored in read_index(folder).values()) > _WORTH_QUANTIZING
        return "int8" if device.type == "cpu" and options.dtype == "auto" and large else "none"
    for known, devices in _QUANTIZES.items():
        if wanted == known and device.type in devices:
            return known
    raise LoadError(
        f"--quantization {wanted} is not available on {device.type}: use none, int8 on cuda or cpu, or int4 on cpu.",
        f"{device.type} 不支持 --quantization {wanted}：请使用 none；int8 可用于 cuda 和 cpu，int4 只能用于 cpu。",
    )


def choose_device(name: str) -> torch.device:
    """auto takes CUDA, then MPS, then the CPU. Raises LoadError for a device that is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, available in there.items() if available)
    if not there.get(name, False):
        usable = ", ".join(kind for kind, available in there.items() if available)
        raise LoadError(
            f"--device {name} is not available here. Available: {usable}.",
            f"此机器没有 --device {name}。可用：{usable}。",
        )
    return torch.device(name)


def choose_dtype(name: str, device: torch.device, folder: Path) -> torch.dtype:
    """auto is bfloat16 on a GPU, and what the checkpoint is stored in on a CPU."""
    known = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    if name in known:
        return known[name]
    if name != "auto":
        raise LoadError(
            f"--dtype {name} is not one this model runs in: use auto, bfloat16 or float32.",
            f"该模型不支持 --dtype {name}，请使用 auto、bfloat16 或 float32。",
        )
    if device.type != "cpu":
        return torch.bfloat16
    return torch.bfloat16 if stored_dtype(folder) == torch.bfloat16 else torch.float32
