"""Some of the network's layers as an ONNX graph: rows in, rows or logits out, keys and values written where they stand.

Computes what `network.py` computes, with ONNX Runtime's fused operators. Weights are not in the graph: each is a name
and a place in a file. Knows no session, no slots and no way to quantise.

Inputs, for B sequences of S rows each, S being 1 wherever B is more than 1:
- `hidden` float32 [B * S, hidden], what the layer before leaves, or embedded rows
- `lead` int64 [3]: B, S and -1; `last` int32 [B], the position of each sequence's last row; `length` int32 [1],
  positions to look at
- `is_text` bool [B * S, 1]; `texts`, `audios` int64 [any]: the rows of each kind; `order` int64 [B * S]: where each
  row stands in these two, one behind the other
- `asked` int64 [any]: the rows whose logits are wanted
- for each layer `key.N`, `value.N` float32 [B, kv_heads, max_len, head_dim]

Outputs: `after`, as `hidden`, or behind the last layer `logits` float32 [asked, codebooks * codebook_size]; and for
each layer `new_key.N`, `new_value.N`, to be bound to the memory of `key.N` and `value.N`.
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
from higgs_server.backends.higgs_v2.quantize import SCALES, ZEROS, Layout

_OPSET, _IR_VERSION = 21, 10
_FUSED = "com.microsoft"
_TYPES = {torch.float32: TensorProto.FLOAT, torch.uint8: TensorProto.UINT8}
_PRECISION = 4
"""MatMulNBits' accuracy level: activations in int8. At levels below, it unpacks every weight in every step."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Consecutive layers as a graph, and what they need."""

    layers: range
    model: bytes
    """Serialised; the file of weights is named in it, the file's folder belongs into the session's options."""
    weights: list[str]
    """Their names, which are also the parameters'."""
    weight_bytes: int
    """Memory for the weights, the sum that MatMulNBits keeps beside every scale included."""
    step_bytes: int
    """What of it a decode step reads: all but the text's own."""


def build(config: HiggsConfig, weights: Mapping[str, Stored], max_positions: int, layers: range) -> Stage:
    """Layers of a network whose parameters, by their names, are at `weights`, all in one file."""
    graph = _Graph(config, weights)
    model = graph.model(max_positions, layers).SerializeToString()
    names = [name for name in graph.initializers if name in weights]
    return Stage(layers, model, names, graph.weight_bytes, graph.step_bytes)


class _Graph:
    """Nodes and initializers on their way to a model. Methods add nodes and return their output's name."""

    def __init__(self, config: HiggsConfig, weights: Mapping[str, Stored]) -> None:
        self.config, self.weights = config, weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.weight_bytes = self.step_bytes = 0

    def model(self, max_positions: int, layers: range) -> onnx.ModelProto:
        c = self.config
        angles = torch.arange(max_positions)[:, None].float() * rotary_frequencies(c)
        self.constant("cos", angles.cos().numpy())
        self.constant("sin", angles.sin().numpy())
        self.constant("flat", np.array([-1, c.num_heads * c.head_dim]))
        self.constant("one", np.ones(c.hidden_size, np.float32))
        x, ffn = "hidden", ""
        for index in layers:
            if ffn:
                normed, x = self.add_and_norm(ffn, x, "one")
            else:
                normed = self.add("SimplifiedLayerNormalization", x, "one", epsilon=c.rms_norm_eps)
            attended = self.attention(index, self.scale_by_kind(index, normed))
            normed, x = self.add_and_norm(attended, x, "one")
            ffn = self.ffn(index, normed)
        if layers.stop == c.num_layers:
            normed, _ = self.add_and_norm(ffn, x, self.stored("norm.weight"))
            codes = c.num_codebooks * c.codebook_size
            logits = self.project(self.add("Gather", normed, "asked"), "head.weight", c.hidden_size)
            self.nodes.append(helper.make_node("Identity", [logits], ["logits"]))
            result = _describe("logits", ["asked", codes])
        else:
            self.nodes.append(helper.make_node("Add", [ffn, x], ["after"]))
            result = _describe("after", ["rows", c.hidden_size])
        return self.finished(layers, result)

    def finished(self, layers: range, result: onnx.ValueInfoProto) -> onnx.ModelProto:
        c = self.config
        cache = ["batch", c.num_kv_heads, "max_len", c.head_dim]
        parts = [f"{part}.{index}" for index in layers for part in ("key", "value")]
        inputs = [
            _describe("hidden", ["rows", c.hidden_size]),
            _describe("lead", [3], TensorProto.INT64),
            _describe("last", ["batch"], TensorProto.INT32),
            _describe("length", [1], TensorProto.INT32),
            _describe("is_text", ["rows", 1], TensorProto.BOOL),
            _describe("texts", ["texts"], TensorProto.INT64),
            _describe("audios", ["audios"], TensorProto.INT64),
            _describe("order", ["rows"], TensorProto.INT64),
            _describe("asked", ["asked"], TensorProto.INT64),
            *(_describe(part, cache) for part in parts),
        ]
        outputs = [result, *(_describe(f"new_{part}", cache) for part in parts)]
        graph = helper.make_graph(self.nodes, "layers", inputs, outputs, list(self.initializers.values()))
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_FUSED, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)

    def scale_by_kind(self, index: int, normed: str) -> str:
        """The rest of the norm before attention: each row by its own kind's weight."""
        weights = [self.stored(f"{branch}.input_norm.weight") for branch in self.branches(index)]
        weight = self.add("Where", "is_text", *weights) if len(weights) == 2 else weights[0]
        return self.add("Mul", normed, weight)

    def attention(self, index: int, x: str) -> str:
        c = self.config
        qkv = self.add("Reshape", self.project(x, f"layers.{index}.qkv.weight", c.hidden_size), "lead")
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
        flat = self.add("Reshape", attended, "flat")
        return self.project(flat, f"layers.{index}.out.weight", c.num_heads * c.head_dim)

    def ffn(self, index: int, normed: str) -> str:
        """Each kind's rows through its own branch, and back in order."""
        branches = self.branches(index)
        if len(branches) == 2:
            kinds = [self.branch(*pair, normed) for pair in zip(branches, ("texts", "audios"), strict=True)]
            both = self.add("Concat", *kinds, axis=0)
        else:
            both = self.branch(branches[0], self.add("Concat", "texts", "audios", axis=0), normed)
        return self.add("Gather", both, "order")

    def branch(self, name: str, rows: str, normed: str) -> str:
        c = self.config
        size = c.audio_ffn_size if name.endswith(".audio") else c.text_ffn_size
        x = self.add("Mul", self.add("Gather", normed, rows), self.stored(f"{name}.ffn_norm.weight"))
        gate_up = self.project(x, f"{name}.gate_up.weight", c.hidden_size)
        gate, up = f"{name}.gate", f"{name}.up"
        self.nodes.append(helper.make_node("Split", [gate_up], [gate, up], axis=-1, num_outputs=2))
        silu = self.add("QuickGelu", gate, domain=_FUSED, alpha=1.0)
        return self.project(self.add("Mul", silu, up), f"{name}.down.weight", size)

    def branches(self, index: int) -> list[str]:
        """Those a layer has: the text's, and one for audio unless audio takes the text's."""
        kinds = ("text", "audio") if index in self.config.audio_ffn_layers else ("text",)
        return [f"layers.{index}.{kind}" for kind in kinds]

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

    def project(self, x: str, weight: str, inputs: int) -> str:
        """x Wᵀ with a weight [out, in], quantised or float32."""
        if weight + SCALES not in self.weights:
            return self.add("Gemm", x, self.stored(weight), transB=1)
        shape = self.weights[weight].shape
        layout = Layout.of(shape, inputs)
        return self.add(
            "MatMulNBits",
            x,
            *(self.stored(weight + part) for part in ("", SCALES, ZEROS) if weight + part in self.weights),
            domain=_FUSED,
            K=inputs,
            N=shape[0],
            bits=layout.bits,
            block_size=layout.block,
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
            size *= 2 if name.endswith(SCALES) else 1
            self.weight_bytes += size
            layer, _, part = name.removeprefix("layers.").partition(".")
            of_text = part.startswith("text.") and int(layer) in self.config.audio_ffn_layers
            self.step_bytes += 0 if of_text or name.endswith(ZEROS) else size
        return name

    def constant(self, name: str, values: np.ndarray) -> None:
        self.initializers[name] = numpy_helper.from_array(values, name)


def _describe(name: str, shape: list[Any], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)
