"""A checkpoint as a network, on each of the ways to run it on a CPU, with packed weights in a folder of the test's."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import torch

from higgs_server.backends.higgs_v2 import packed
from higgs_server.backends.higgs_v2.checkpoint import load_network
from higgs_server.backends.higgs_v2.network import HiggsNetwork
from higgs_server.backends.higgs_v2.onnx_model import OnnxNetwork, load_onnx
from higgs_server.backends.higgs_v2.quantize import Quantization

RUNNERS: dict[str, Quantization | None] = {"torch": None, "onnx": "none", "onnx-int8": "int8", "onnx-int4": "int4"}
"""How the ONNX network's weights are kept; None is the network on torch, in float32."""


def network_of(folder: Path, runner: str, cache: Path) -> HiggsNetwork:
    """Loads a checkpoint for one of RUNNERS."""
    quantization = RUNNERS[runner]
    if quantization is None:
        return load_network(folder, torch.device("cpu"), torch.float32)
    return onnx_network(folder, quantization, cache)


def onnx_network(folder: Path, quantization: Quantization, cache: Path) -> OnnxNetwork:
    """Packs a checkpoint and loads it. One thread: handing tensors this small to several costs more than it saves."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with mock.patch.object(packed, "cache_folder", return_value=cache):
            return load_onnx(folder, quantization, lambda stage, fraction: None)
    finally:
        torch.set_num_threads(threads)
