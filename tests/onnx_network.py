"""The network on ONNX Runtime, with its packed weights in a folder of the test's."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import torch

from higgs_server.backends.higgs_v2 import packed
from higgs_server.backends.higgs_v2.onnx_model import OnnxNetwork, load_onnx
from higgs_server.backends.higgs_v2.quantize import Quantization


def onnx_network(folder: Path, quantization: Quantization, cache: Path) -> OnnxNetwork:
    """Packs a checkpoint and loads it. One thread: handing tensors this small to several costs more than it saves."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with mock.patch.object(packed, "cache_folder", return_value=cache):
            return load_onnx(folder, quantization)
    finally:
        torch.set_num_threads(threads)
