"""Fewer bits: the layout ONNX Runtime reads, the error that is left, and the products that prompts take."""

from __future__ import annotations

import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from higgs_server.backends.higgs_v2.quantize import BLOCK, QuantizedProjection, Workspace, bits_of, quantize

OUT, IN = 96, 160


def gaussian(seed: int = 0, outputs: int = OUT, inputs: int = IN) -> Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))


def unpacked(packed: Tensor, scales: Tensor) -> Tensor:
    """The weights in float32, written down in the plainest way."""
    numbers, half = packed, 128
    if bits_of(packed.shape) == 4:
        numbers, half = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2), 8
    return ((numbers.float() - half) * scales[..., None]).flatten(1)


def error(weight: Tensor, bits: int) -> float:
    return ((unpacked(*quantize(weight, bits)) - weight).norm() / weight.norm()).item()


def matmul_nbits(packed: Tensor, scales: Tensor, x: Tensor) -> Tensor:
    attributes = {"K": scales.shape[1] * BLOCK, "N": len(scales), "bits": bits_of(packed.shape), "block_size": BLOCK}
    graph = helper.make_graph(
        [
            helper.make_node(
                "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", accuracy_level=4, **attributes
            )
        ],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [len(x), len(scales)])],
        [numpy_helper.from_array(packed.numpy(), "w"), numpy_helper.from_array(scales.numpy(), "s")],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


@pytest.mark.parametrize("bits", [4, 8])
def test_onnxruntime_reads_the_weights_that_were_packed(bits: int) -> None:
    """A row with a single one in it is exact in any precision, and its product is a column of the weight."""
    packed, scales = quantize(gaussian(), bits)
    assert torch.allclose(matmul_nbits(packed, scales, torch.eye(IN)).T, unpacked(packed, scales), atol=1e-6)


def test_errors_are_those_of_the_bits_and_less_than_plain_rounding() -> None:
    weight = gaussian(1, 512, 512)
    blocks = weight.view(-1, BLOCK)

    def plain(half: int) -> float:
        scale = blocks.abs().amax(-1, keepdim=True) / (half - 1)
        return (((blocks / scale).round() * scale - blocks).norm() / weight.norm()).item()

    assert error(weight, 8) < 0.006
    assert error(weight, 8) < plain(128)
    assert error(weight, 4) < 0.85 * plain(8)


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_of_any_kind_keep_their_numbers(bits: int) -> None:
    weight = torch.zeros(4, 2 * BLOCK)
    weight[1, 5] = -3e-20
    weight[2, :BLOCK] = 0.5
    weight[3, BLOCK] = 7e4
    result = unpacked(*quantize(weight, bits))
    assert torch.isfinite(result).all()
    assert torch.equal(result[0], weight[0])
    assert (result - weight).abs().max() <= 1e-3 * 7e4
    assert torch.allclose(result[2], weight[2], rtol=0.01)
    assert result[3, BLOCK].item() == pytest.approx(7e4, rel=0.01)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "bfloat16"])
def test_a_prompts_product_is_that_of_the_unpacked_weight(
    bits: int, rows: int, narrow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from higgs_server.backends.higgs_v2 import quantize as module

    monkeypatch.setattr(module, "native_bf16", lambda: narrow)
    monkeypatch.setattr(module, "_CHUNK_WEIGHTS", 40 * IN)  # three pieces, the last a shorter one
    packed, scales = quantize(gaussian(), bits)
    x = gaussian(2, rows, IN)
    exact = x @ unpacked(packed, scales).T
    released: list[bool] = []
    result = QuantizedProjection(packed, scales, Workspace(), lambda: released.append(True))(x)
    assert released == [True]
    assert result.dtype == torch.float32
    assert (result - exact).norm() < (0.006 if narrow else 1e-6) * exact.norm()
