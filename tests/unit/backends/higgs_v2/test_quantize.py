"""Fewer bits: the layout ONNX Runtime reads, and the error that is left."""

from __future__ import annotations

import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from higgs_server.backends.higgs_v2.quantize import Layout, block_of, quantize

OUT, IN = 96, 160


def gaussian(seed: int = 0, outputs: int = OUT, inputs: int = IN) -> Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))


def halves(packed: Tensor) -> Tensor:
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


def unpacked(packed: Tensor, scales: Tensor, zeros: Tensor | None) -> Tensor:
    """The weights in float32, written down in the plainest way."""
    if zeros is None:
        return ((packed.float() - 128) * scales[..., None]).flatten(1)
    zero = halves(zeros)[:, : scales.shape[1], None]
    return ((halves(packed).float() - zero) * scales[..., None]).flatten(1)


def error(weight: Tensor, bits: int) -> float:
    return ((unpacked(*quantize(weight, bits)) - weight).norm() / weight.norm()).item()


def matmul_nbits(packed: Tensor, scales: Tensor, zeros: Tensor | None, x: Tensor) -> Tensor:
    layout = Layout.of(tuple(packed.shape), x.shape[1])
    attributes = {"K": x.shape[1], "N": len(scales), "bits": layout.bits, "block_size": layout.block}
    weights = {"w": packed, "s": scales} | ({} if zeros is None else {"z": zeros})
    graph = helper.make_graph(
        [
            helper.make_node(
                "MatMulNBits", ["x", *weights], ["y"], domain="com.microsoft", accuracy_level=4, **attributes
            )
        ],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [len(x), len(scales)])],
        [numpy_helper.from_array(tensor.numpy(), name) for name, tensor in weights.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


@pytest.mark.parametrize("bits", [4, 8])
def test_onnxruntime_reads_the_weights_that_were_packed(bits: int) -> None:
    """A row with a single one in it is exact in any precision, and its product is a column of the weight."""
    parts = quantize(gaussian() + 0.3, bits)
    assert torch.allclose(matmul_nbits(*parts, torch.eye(IN)).T, unpacked(*parts), atol=1e-6)


@pytest.mark.parametrize(("bits", "inputs", "block"), [(8, 3072, 64), (8, 160, 32), (4, 8192, 32), (4, 80, 16)])
def test_blocks_are_as_long_as_fit(bits: int, inputs: int, block: int) -> None:
    assert block_of(inputs, bits) == block
    packed, scales, _ = quantize(gaussian(0, 3, inputs), bits)
    assert Layout.of(tuple(packed.shape), inputs) == (bits, block)
    assert scales.shape == (3, inputs // block)


def test_errors_are_those_of_the_bits_and_less_than_plain_rounding() -> None:
    weight = gaussian(1, 512, 512)

    def plain(bits: int) -> float:
        blocks, half = weight.view(-1, block_of(512, bits)), 1 << (bits - 1)
        scale = blocks.abs().amax(-1, keepdim=True) / (half - 1)
        return (((blocks / scale).round() * scale - blocks).norm() / weight.norm()).item()

    assert error(weight, 8) < 0.006
    assert error(weight, 8) < plain(8)
    assert error(weight, 4) < 0.82 * plain(4)


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_of_any_kind_keep_their_numbers(bits: int) -> None:
    weight = torch.zeros(4, 192)
    weight[1, 5] = -3e-20
    weight[2] = 0.5
    weight[3, 64] = 7e4
    result = unpacked(*quantize(weight, bits))
    assert torch.isfinite(result).all()
    assert torch.equal(result[0], weight[0])
    assert (result - weight).abs().max() <= 1e-3 * 7e4
    assert torch.allclose(result[2], weight[2], rtol=0.01)
    assert result[3, 64].item() == pytest.approx(7e4, rel=0.01)
