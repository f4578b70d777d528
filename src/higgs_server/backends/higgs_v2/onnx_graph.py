"""The decode step as an ONNX graph: audio rows in, logits out, keys and values written where they stand.

Computes what `network.py` computes for audio positions, with ONNX Runtime's fused operators. Weights are not in the
graph: each is a name and a place in a file. Knows no session, no slots and no way to quantise.

Inputs: `hidden` float32 [B * S, hidden], embedded rows; `lead` int64 [3], B, S and -1; `last` int32 [B], the position
of each sequence's last row; `length` int32 [1], positions to look at; and per layer `key.N`, `value.N` float32
[B, kv_heads, max_len, head_dim]. Outputs: `logits` float32 [B * S, codebooks * codebook_size], and per layer
`new_key.N`, `new_value.N`, to be bound to the memory of `key.N` and `value.N`. S is 1 wherever B is more than 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from higgs_server.backends.higgs_v2.checkpoint import Stored
from higgs_server.backends.higgs_v2.config import HiggsConfig
from higgs_server.backends.higgs_v2.network import rotary_frequencies
from higgs_server.backends.higgs_v2.quantize import BLOCK, SCALES, bits_of

_OPSET, _IR_VERSION = 21, 10
_FUSED = "com.microsoft"
_TYPES = {torch.float32: TensorProto.FLOAT, torch.uint8: TensorProto.UINT8}
_PRECISION = 4
"""MatMulNBits' accuracy level: activations in int8. At levels below, it unpacks every weight in every step."""


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """A graph, and what it needs."""

    model: bytes
    """Serialised; the file of weights is named in it, the file's folder belongs into the session's options."""
    weight_bytes: int
    """What a step reads, the sum that MatMulNBits keeps beside every scale included."""


def build(config: HiggsConfig, weights: Mapping[str, Stored], max_positions: int) -> DecodeStep:
    """The step of a network whose parameters, by their names, are at `weights`, all in one file."""
    graph = _Graph(config, weights)
    model = graph.decode_step(max_positions).SerializeToString()
    return DecodeStep(model, graph.weight_bytes)


class _Graph:
    """Nodes and initializers on their way to a model. Methods add a node and return its output's name."""

    def __init__(self, config: HiggsConfig, weights: Mapping[str, Stored]) -> None:
        self.config, self.weights = config, weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.weight_bytes = 0

    def decode_step(self, max_positions: int) -> onnx.ModelProto:
        c = self.config
        angles = torch.arange(max_positions)[:, None].float() * rotary_frequencies(c)
        self.constant("cos", angles.cos().numpy())
        self.constant("sin", angles.sin().numpy())
        self.constant("flat", np.array([-1, c.num_heads * c.head_dim]))
        normed = self.add("SimplifiedLayerNormalization", "hidden", self.norm(0, "input_norm"), epsilon=c.rms_norm_eps)
        residual = "hidden"
        for index in range(c.num_layers):
            attended = self.attention(index, normed)
            normed, residual = self.add_and_norm(attended, residual, self.norm(index, "ffn_norm"))
            after = self.norm(index + 1, "input_norm") if index + 1 < c.num_layers else self.stored("norm.weight")
            normed, residual = self.add_and_norm(self.ffn(self.branch(index), normed), residual, after)
        self.nodes.append(helper.make_node("Identity", [self.project(normed, "head.weight")], ["logits"]))
        cache = ["batch", c.num_kv_heads, "max_len", c.head_dim]
        parts = [f"{part}.{index}" for index in range(c.num_layers) for part in ("key", "value")]
        inputs = [
            _describe("hidden", ["rows", c.hidden_size]),
            _describe("lead", [3], TensorProto.INT64),
            _describe("last", ["batch"], TensorProto.INT32),
            _describe("length", [1], TensorProto.INT32),
            *(_describe(part, cache) for part in parts),
        ]
        outputs = [
            _describe("logits", ["rows", c.num_codebooks * c.codebook_size]),
            *(_describe(f"new_{part}", cache) for part in parts),
        ]
        graph = helper.make_graph(self.nodes, "decode_step", inputs, outputs, list(self.initializers.values()))
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_FUSED, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)

    def attention(self, index: int, x: str) -> str:
        c = self.config
        qkv = self.add("Reshape", self.project(x, f"layers.{index}.qkv.weight"), "lead")
        attended = f"attended.{index}"
        node = helper.make_node(
            "GroupQueryAttention",
            [qkv, "", "", f"key.{index}", f"value.{index}", "last", "length", "cos", "sin"],
            [attended, f"new_key.{index}", f"new_value.{index}"],
            domain=_FUSED,
            num_heads=c.num_heads,
            kv_num_heads=c.num_kv_heads,
            do_rotary=1,
        )
        self.nodes.append(node)
        return self.project(self.add("Reshape", attended, "flat"), f"layers.{index}.out.weight")

    def ffn(self, branch: str, x: str) -> str:
        gate_up = self.project(x, f"{branch}.gate_up.weight")
        gate, up = f"{branch}.gate", f"{branch}.up"
        self.nodes.append(helper.make_node("Split", [gate_up], [gate, up], axis=-1, num_outputs=2))
        silu = self.add("QuickGelu", gate, domain=_FUSED, alpha=1.0)
        return self.project(self.add("Mul", silu, up), f"{branch}.down.weight")

    def add_and_norm(self, x: str, residual: str, weight: str) -> tuple[str, str]:
        """The norm of the sum, and the sum."""
        normed, total = f"normed.{len(self.nodes)}", f"sum.{len(self.nodes)}"
        node = helper.make_node(
            "SkipSimplifiedLayerNormalization",
            [x, residual, weight],
            [normed, "", "", total],
            domain=_FUSED,
            epsilon=self.config.rms_norm_eps,
        )
        self.nodes.append(node)
        return normed, total

    def branch(self, index: int) -> str:
        kind = "audio" if index in self.config.audio_ffn_layers else "text"
        return f"layers.{index}.{kind}"

    def norm(self, index: int, name: str) -> str:
        return self.stored(f"{self.branch(index)}.{name}.weight")

    def project(self, x: str, weight: str) -> str:
        """x Wᵀ with a weight [out, in], quantised or float32."""
        if weight + SCALES not in self.weights:
            return self.add("Gemm", x, self.stored(weight), transB=1)
        outputs, blocks, _ = self.weights[weight].shape
        return self.add(
            "MatMulNBits",
            x,
            self.stored(weight),
            self.stored(weight + SCALES),
            domain=_FUSED,
            K=blocks * BLOCK,
            N=outputs,
            bits=bits_of(self.weights[weight].shape),
            block_size=BLOCK,
            accuracy_level=_PRECISION,
        )

    def add(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        output = f"{operator}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], domain=domain, **attributes))
        return output

    def stored(self, name: str) -> str:
        """An initializer whose bytes are in the file of weights."""
        if name not in self.initializers:
            place = self.weights[name]
            tensor = TensorProto(name=name, dims=place.shape, data_location=TensorProto.EXTERNAL)
            tensor.data_type = _TYPES[place.dtype or torch.uint8]
            size = int(np.prod(place.shape)) * (4 if tensor.data_type == TensorProto.FLOAT else 1)
            for key, value in (("location", place.file.name), ("offset", place.begin), ("length", size)):
                tensor.external_data.add(key=key, value=str(value))
            self.initializers[name] = tensor
            self.weight_bytes += 2 * size if name.endswith(SCALES) else size
        return name

    def constant(self, name: str, values: np.ndarray) -> None:
        self.initializers[name] = numpy_helper.from_array(values, name)


def _describe(name: str, shape: list[Any], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)
