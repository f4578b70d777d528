"""The language model on a CPU without much memory bandwidth: quantised weights, run by ONNX Runtime.

A decode step reads every weight once, which MatMulNBits does in the form they are stored in. A prompt's rows go that
way too: many take about as long as unpacking the weights for torch's products, few half as long, even on a CPU that
multiplies bfloat16 (bench/RESULTS.md).

The layers are several sessions, so that as many threads bring weights into MatMulNBits' own order when they are loaded.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime import OrtValue
from torch import Tensor, nn

from higgs_server.backends.higgs_v2 import onnx_graph, packed
from higgs_server.backends.higgs_v2.checkpoint import check_memory
from higgs_server.backends.higgs_v2.config import HiggsConfig
from higgs_server.backends.higgs_v2.network import HiggsNetwork
from higgs_server.backends.higgs_v2.onnx_graph import Stage
from higgs_server.backends.higgs_v2.packed import PackedWeights, packed_weights
from higgs_server.backends.higgs_v2.quantize import Quantization
from higgs_server.engine.interface import Run, TextRun
from higgs_server.types import Progress

_CPU = torch.device("cpu")
_NUMPY = {torch.float32: np.float32, torch.int64: np.int64, torch.int32: np.int32, torch.bool: np.bool_}
_STAGES = 4
"""Sessions at most."""
_PACKING = 0.9
"""What packing the weights takes of all the time to load them."""


def load_onnx(folder: Path, quantization: Quantization, progress: Progress) -> OnnxNetwork:
    """The network of a checkpoint's folder, its weights packed now or before. Raises LoadError."""
    packed_part = 0.0

    def packing(stage: str, fraction: float) -> None:
        nonlocal packed_part
        packed_part = _PACKING * fraction
        progress(stage, packed_part)

    weights = packed_weights(folder, quantization, packing)
    rest = 1 - packed_part
    network = OnnxNetwork(
        HiggsConfig.from_folder(folder), weights, lambda stage, part: progress(stage, packed_part + rest * part)
    )
    network.prefix_folder = packed.cache_folder("prefixes") / network.fingerprint
    return network


class OnnxNetwork(HiggsNetwork):
    """A FrameModel (see engine/interface.py) whose layers are ONNX Runtime's. Always on the CPU in float32."""

    step_bytes: int
    """Bytes of weights that a decode step reads."""

    def __init__(self, config: HiggsConfig, weights: PackedWeights, progress: Progress | None = None) -> None:
        """Raises LoadError where memory does not suffice."""
        super().__init__(config, torch.device("meta"), torch.float32)
        self._work_on(_CPU)
        del self.layers, self.norm, self.head
        for name in ("text_embedding", "audio_embedding"):
            setattr(self, name, nn.Parameter(weights[name], requires_grad=False))
        self.fingerprint = weights.fingerprint
        stages = [onnx_graph.build(config, weights.stored, self.max_positions, part) for part in _parts(config)]
        check_memory(sum(stage.weight_bytes for stage in stages), _CPU)
        self.step_bytes = sum(stage.step_bytes for stage in stages)
        self.sessions = list(_sessions(stages, weights, progress))
        self._decode_steps: dict[tuple[object, ...], _Pass] = {}

    def new_kv_cache(self, slots: int, max_len: int) -> Tensor:
        """A zeroed cache [layers, 2, slots, kv_heads, max_len, head_dim]."""
        self._decode_steps.clear()  # what was bound to a cache before may be gone
        c = self.config
        shape = (c.num_layers, 2, slots, c.num_kv_heads, max_len, c.head_dim)
        # 4 utterances of 4096 positions are 4 GB. Mapped, only positions that were written to take memory.
        try:
            memory = mmap.mmap(-1, 4 * math.prod(shape))
        except (OSError, OverflowError) as error:
            raise MemoryError(f"no memory for keys and values: {error}") from error
        return torch.frombuffer(memory, dtype=torch.float32).view(shape)

    @torch.inference_mode()
    def prefill(self, kv_cache: Tensor, slot: int, start: int, runs: Sequence[Run]) -> Tensor:
        """Writes the runs into `slot` from position `start` on; positions before it are in the cache already.

        Returns the logits after the last position, float32 [codebooks, codebook_size].
        """
        hidden = [self._embed(run) for run in runs]
        kinds = torch.cat(
            [torch.full((len(part),), isinstance(run, TextRun)) for run, part in zip(runs, hidden, strict=True)]
        )
        end = start + len(kinds)
        piece = _Pass(self, kv_cache[:, :, slot : slot + 1], kinds, torch.tensor([len(kinds) - 1]))
        return self._logits(piece.run(torch.cat(hidden), torch.tensor([end - 1]), end))[0]

    @torch.inference_mode()
    def decode(self, kv_cache: Tensor, rows: Tensor, positions: Tensor, max_len: int) -> Tensor:
        """One decode step for slots 0 … B-1; see HiggsNetwork. A row's result does not depend on the others."""
        batch = len(rows)
        key = (kv_cache.data_ptr(), kv_cache.shape, kv_cache.stride(), batch)
        step = self._decode_steps.get(key)
        if step is None:
            step = _Pass(self, kv_cache[:, :, :batch], torch.zeros(batch, dtype=torch.bool), torch.arange(batch))
            self._decode_steps[key] = step
        return self._logits(step.run(self._embed_rows(rows), positions, max_len)).clone()

    def _logits(self, x: Tensor) -> Tensor:
        return x.view(len(x), self.num_codebooks, self.codebook_size)


class _Pass:
    """Rows through all layers: inputs and outputs in place, a KV cache's memory as both past and present."""

    def __init__(self, network: OnnxNetwork, kv_cache: Tensor, is_text: Tensor, asked: Tensor) -> None:
        """Rows for each slot of kv_cache; is_text bool [rows]; `asked` are those whose logits are wanted."""
        batch, rows = kv_cache.shape[2], len(is_text)
        texts, audios, order = _by_kind(is_text)
        self._hidden = torch.empty(rows, network.config.hidden_size)
        self._last = torch.empty(batch, dtype=torch.int32)
        self._length = torch.empty(1, dtype=torch.int32)
        self._logits = torch.empty(len(asked), network.num_codebooks * network.codebook_size)
        inputs = {
            "lead": torch.tensor([batch, rows // batch, -1]),
            "last": self._last,
            "length": self._length,
            "is_text": is_text[:, None],
            "texts": texts,
            "audios": audios,
            "order": order,
            "asked": asked,
        }
        between = [torch.empty_like(self._hidden) for _ in network.sessions[1:]]
        ways = pairwise((self._hidden, *between, self._logits))
        self._kept = inputs, between  # bound by address
        self._runs = [
            (session, session.bind(kv_cache, {**inputs, "hidden": before}, after))
            for session, (before, after) in zip(network.sessions, ways, strict=True)
        ]

    def run(self, hidden: Tensor, last: Tensor, length: int) -> Tensor:
        """hidden [rows, hidden]; last [B]: where each slot's last row is written; `length`: positions to look at.

        Returns the logits [asked, codebooks * codebook_size], valid until the next run.
        """
        self._hidden.copy_(hidden)
        self._last.copy_(last)
        self._length.fill_(length)
        for session, binding in self._runs:
            session.run(binding)
        return self._logits


class _Session:
    """A stage that is ready to run."""

    def __init__(self, stage: Stage, weights: PackedWeights) -> None:
        self.layers = stage.layers
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # nothing is left to fuse
        options.enable_cpu_mem_arena = False  # it keeps what a prompt once took
        # What the graph names as the weights' place is only looked at; where they are mapped already, the pages that
        # are not needed any more can be let go.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights.folder))
        self._weights = {name: OrtValue.ortvalue_from_numpy(weights[name].numpy()) for name in stage.weights}
        for name, value in self._weights.items():
            options.add_initializer(name, value)
        # The cores are the next stage's then, and torch's for sampling and the codec.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = onnxruntime.InferenceSession(stage.model, options, providers=["CPUExecutionProvider"])
        weights.let_go()  # MatMulNBits has them in its own order now; what others still read comes back by itself

    def bind(self, kv_cache: Tensor, inputs: dict[str, Tensor], output: Tensor) -> onnxruntime.IOBinding:
        """Everything in place; `output` is written by `run`. None of the tensors may be freed while it is used."""
        binding = self._session.io_binding()
        for name, tensor in inputs.items():
            _bind(binding.bind_input, name, tensor)
        _bind(binding.bind_output, self._session.get_outputs()[0].name, output)
        for index in self.layers:
            for part, tensor in zip(("key", "value"), kv_cache[index], strict=True):
                _bind(binding.bind_input, f"{part}.{index}", tensor)
                _bind(binding.bind_output, f"new_{part}.{index}", tensor)
        return binding

    def run(self, binding: onnxruntime.IOBinding) -> None:
        self._session.run_with_iobinding(binding)


def _bind(bind: Callable[..., None], name: str, tensor: Tensor) -> None:
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must lie in one piece")
    bind(name, "cpu", 0, _NUMPY[tensor.dtype], tuple(tensor.shape), tensor.data_ptr())


def _by_kind(is_text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of rows bool [n]: those of text, those of audio, and each row's place in the two together."""
    texts, audios = (kind.nonzero()[:, 0] for kind in (is_text, ~is_text))
    return texts, audios, torch.cat((texts, audios)).argsort()


def _parts(config: HiggsConfig) -> list[range]:
    """The layers in about equal parts."""
    count = min(_STAGES, config.num_layers)
    return [range(a, b) for a, b in pairwise(config.num_layers * part // count for part in range(count + 1))]


def _sessions(stages: list[Stage], weights: PackedWeights, progress: Progress | None) -> Iterator[_Session]:
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for done, session in enumerate(pool.map(lambda stage: _Session(stage, weights), stages), start=1):
            if progress:
                progress("loading weights", done / len(stages))
            yield session
