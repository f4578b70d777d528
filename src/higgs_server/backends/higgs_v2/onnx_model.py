"""The language model on a CPU without much memory bandwidth: quantised weights, decode steps by ONNX Runtime.

A step reads every weight once, which MatMulNBits does in the form they are stored in. A prompt has many rows for each
weight, so it takes the network's own way, over the same KV cache, with weights unpacked for torch's products: of a
weight of 16384 x 3072 in 8 bits, 335 rows took 36 ms so and 112 ms with MatMulNBits, 34 rows 23 and 13 ms (a CPU that
multiplies bfloat16). For few rows MatMulNBits wins, but it keeps 10 bits for each weight in 8 (6 for one in 4), and the
text's weights would take 2.6 GB more (1.6). Only the steps' weights are in the session's memory; those of the prompt
are read from the mapped file and let go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from higgs_server.backends.higgs_v2 import onnx_graph, packed
from higgs_server.backends.higgs_v2.checkpoint import check_memory
from higgs_server.backends.higgs_v2.config import HiggsConfig
from higgs_server.backends.higgs_v2.network import HiggsNetwork
from higgs_server.backends.higgs_v2.packed import PackedWeights, packed_weights
from higgs_server.backends.higgs_v2.projection import ROWS_ONE_BY_ONE
from higgs_server.backends.higgs_v2.quantize import SCALES, Quantization, QuantizedProjection, Workspace
from higgs_server.engine.interface import AudioRun, Run
from higgs_server.engine.sequence import positions_of
from higgs_server.types import Progress

_CPU = torch.device("cpu")
_NUMPY = {torch.float32: np.float32, torch.int64: np.int64, torch.int32: np.int32}


def load_onnx(folder: Path, quantization: Quantization, progress: Progress | None = None) -> OnnxNetwork:
    """The network of a checkpoint's folder, its weights packed now or before. Raises LoadError."""
    network = OnnxNetwork(HiggsConfig.from_folder(folder), packed_weights(folder, quantization, progress))
    network.prefix_folder = packed.cache_folder("prefixes") / network.fingerprint
    return network


class OnnxNetwork(HiggsNetwork):
    """A FrameModel (see engine/interface.py) whose decode steps are ONNX Runtime's. Always on the CPU in float32."""

    prefill_budget = 512  # unpacking the weights costs as much for few positions as for many
    step_bytes: int
    """Bytes of weights that a step reads."""

    def __init__(self, config: HiggsConfig, weights: PackedWeights) -> None:
        """Raises LoadError where memory does not suffice."""
        super().__init__(config, torch.device("meta"), torch.float32)
        self._work_on(_CPU)
        workspace = Workspace()
        for name, _ in list(self.named_parameters()):
            module, _, leaf = name.rpartition(".")
            if name + SCALES in weights:
                parent, _, child = module.rpartition(".")
                projection = QuantizedProjection(weights[name], weights[name + SCALES], workspace, weights.let_go)
                setattr(self.get_submodule(parent), child, projection)
            else:
                setattr(self.get_submodule(module), leaf, nn.Parameter(weights[name], requires_grad=False))
        self.fingerprint = weights.fingerprint
        step = onnx_graph.build(config, weights.stored, self.max_positions)
        check_memory(step.weight_bytes, _CPU)
        self.step_bytes = step.weight_bytes
        self._session = _session(step.model, weights.folder)
        self._bindings: dict[tuple[object, ...], _Binding] = {}

    @torch.inference_mode()
    def prefill(self, kv_cache: Tensor, slot: int, start: int, runs: Sequence[Run]) -> Tensor:
        """Writes the runs into `slot` from position `start` on; positions before it are in the cache already.

        Returns the logits after the last position, float32 [codebooks, codebook_size].
        """
        *before, last = runs
        if not isinstance(last, AudioRun) or len(last.rows) > ROWS_ONE_BY_ONE:
            return super().prefill(kv_cache, slot, start, runs)
        if before:
            super().prefill(kv_cache, slot, start, before)
        end = start + positions_of(runs)
        own = kv_cache[:, :, slot : slot + 1]
        return self._step(own, torch.from_numpy(last.rows), torch.tensor([end - 1]), end)[-1]

    @torch.inference_mode()
    def decode(self, kv_cache: Tensor, rows: Tensor, positions: Tensor, max_len: int) -> Tensor:
        """One decode step for slots 0 … B-1; see HiggsNetwork. A row's result does not depend on the others."""
        return self._step(kv_cache[:, :, : len(rows)], rows, positions, max_len)

    def _step(self, kv_cache: Tensor, rows: Tensor, last: Tensor, length: int) -> Tensor:
        """rows int64 [B * S, codebooks], S for each slot of kv_cache; last [B]: where the last of each is written."""
        key = (kv_cache.data_ptr(), kv_cache.shape, kv_cache.stride(), len(rows))
        binding = self._bindings.get(key)
        if binding is None:
            binding = self._bindings[key] = _Binding(self._session, kv_cache, len(rows), self)
        logits = binding.run(self._session, self._embed_rows(rows), last, length)
        return logits.view(len(rows), self.num_codebooks, self.codebook_size).clone()


class _Binding:
    """A session's inputs and outputs in place: buffers of its own, and a KV cache's memory as both past and present."""

    def __init__(
        self, session: onnxruntime.InferenceSession, kv_cache: Tensor, rows: int, network: HiggsNetwork
    ) -> None:
        batch = kv_cache.shape[2]
        self._hidden = torch.empty(rows, network.config.hidden_size)
        self._last = torch.empty(batch, dtype=torch.int32)
        self._length = torch.empty(1, dtype=torch.int32)
        self._lead = torch.tensor([batch, rows // batch, -1])
        self._logits = torch.empty(rows, network.num_codebooks * network.codebook_size)
        self._io = session.io_binding()
        inputs = (("hidden", self._hidden), ("lead", self._lead), ("last", self._last), ("length", self._length))
        for name, tensor in inputs:
            self._bind(self._io.bind_input, name, tensor)
        self._bind(self._io.bind_output, "logits", self._logits)
        for index, layer in enumerate(kv_cache):
            for part, tensor in zip(("key", "value"), layer, strict=True):
                self._bind(self._io.bind_input, f"{part}.{index}", tensor)
                self._bind(self._io.bind_output, f"new_{part}.{index}", tensor)

    @staticmethod
    def _bind(bind: Callable[..., None], name: str, tensor: Tensor) -> None:
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must lie in one piece")
        bind(name, "cpu", 0, _NUMPY[tensor.dtype], tuple(tensor.shape), tensor.data_ptr())

    def run(self, session: onnxruntime.InferenceSession, hidden: Tensor, last: Tensor, length: int) -> Tensor:
        """The logits [rows, codebooks * codebook_size], valid until the next run."""
        self._hidden.copy_(hidden)
        self._last.copy_(last)
        self._length.fill_(length)
        session.run_with_iobinding(self._io)
        return self._logits


def _session(graph: bytes, folder: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # nothing is left to fuse
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    # Between steps the cores are torch's, for sampling, prompts and the codec.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
