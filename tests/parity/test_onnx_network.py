"""The network on ONNX Runtime against the one on torch: equal without quantisation, close with it, in any batch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from higgs_server.backends.higgs_v2.checkpoint import load_network
from higgs_server.backends.higgs_v2.config import HiggsConfig
from higgs_server.backends.higgs_v2.network import HiggsNetwork
from higgs_server.backends.higgs_v2.onnx_model import OnnxNetwork
from higgs_server.backends.higgs_v2.packed import PackedWeights, pack
from higgs_server.backends.higgs_v2.quantize import Quantization
from higgs_server.engine.interface import AudioRun, Run, TextRun
from higgs_server.engine.kv_cache import KVCache
from higgs_server.engine.sequence import slice_runs
from make_tiny_checkpoint import tiny_weights, write_language_model
from networks import onnx_network
from reference_loop import length

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
TINY = HiggsConfig.from_folder(Path(__file__).parents[1] / "golden" / "higgs-v2-tiny-original")
TRUE_WIDTH = replace(
    TINY, hidden_size=3072, num_layers=1, num_heads=24, num_kv_heads=8, head_dim=128, text_ffn_size=64,
    audio_ffn_size=8192, audio_ffn_layers=frozenset([0]),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Branches as weak as a trained network's: in the tiny checkpoint's own, any error grows tenfold a layer."""
    weights = tiny_weights(3)
    for name, weight in weights.items():
        if "o_proj" in name or "down_proj" in name:
            weight *= 0.25
    return write_language_model(tmp_path_factory.mktemp("tiny"), weights)


def some_prompt(seed: int) -> list[Run]:
    dice = np.random.default_rng(seed)
    text, rows = (lambda n: TextRun(dice.integers(0, 250, n))), (lambda n: AudioRun(dice.integers(0, 1024, (n, 8))))
    return [text(20), rows(30), text(7), rows(9), text(3), AudioRun(np.full((1, 8), 1024))]


def exact_narrow_and_ours(
    folder: Path, tmp_path: Path, quantization: Quantization
) -> tuple[HiggsNetwork, HiggsNetwork, OnnxNetwork]:
    """A checkpoint in float32, in bfloat16, whose error is the measure, and quantised."""
    exact, narrow = (load_network(folder, CPU, dtype) for dtype in (torch.float32, torch.bfloat16))
    return exact, narrow, onnx_network(folder, quantization, tmp_path)


def forced(network: HiggsNetwork, runs: list[Run], rows: np.ndarray) -> Tensor:
    """Logits [len(rows) + 1, codebooks, codes] after a prompt and after each further row."""
    cache, end = network.new_kv_cache(2, length(runs) + len(rows)), length(runs)
    logits = [network.prefill(cache, 0, 0, runs)]
    for position, row in enumerate(rows, start=end):
        logits.append(network.decode(cache, torch.tensor(row)[None], torch.tensor([position]), position + 1)[0])
    return torch.stack(logits)


@pytest.mark.parametrize(("quantization", "times"), [("none", 1e-3), ("int8", 2.0), ("int4", 18.0)])
def test_logits_are_as_close_to_float32_as_the_bits_allow(
    folder: Path, tmp_path: Path, quantization: Quantization, times: float
) -> None:
    """Held against what bfloat16 does to the same checkpoint, which is small enough to feel every rounding."""
    networks = exact_narrow_and_ours(folder, tmp_path, quantization)
    logits: list[list[Tensor]] = [[], [], []]
    for seed in range(3):
        rows = np.random.default_rng(seed).integers(0, 1024, (30, 8))
        for network, its in zip(networks, logits, strict=True):
            its.append(forced(network, some_prompt(seed), rows))
    exact, narrow, ours = map(torch.cat, logits)
    assert (ours - exact).norm() < times * (narrow - exact).norm()
    agreement = (ours.argmax(-1) == exact.argmax(-1)).float().mean()
    assert agreement >= {"none": 1.0, "int8": 0.85, "int4": 0.2}[quantization]


def test_a_layer_without_an_audio_branch_uses_the_texts(tmp_path: Path) -> None:
    weights = {name: tensor for name, tensor in tiny_weights(4).items() if ".layers.1.audio_" not in name}
    folder = write_language_model(tmp_path / "lean", weights, "original")
    config = json.loads((folder / "config.json").read_text())
    config |= {"audio_adapter_type": "dual_ffn", "audio_dual_ffn_layers": [0, 2]}
    (folder / "config.json").write_text(json.dumps(config))
    rows = np.random.default_rng(0).integers(0, 1024, (5, 8))
    exact = forced(load_network(folder, CPU, torch.float32), some_prompt(0), rows)
    assert torch.allclose(forced(onnx_network(folder, "none", tmp_path), some_prompt(0), rows), exact, atol=1e-4)


def test_a_prefill_writes_its_own_slot_and_only_there(folder: Path, tmp_path: Path) -> None:
    network, exact_network = onnx_network(folder, "none", tmp_path), load_network(folder, CPU, torch.float32)
    runs = some_prompt(5)
    caches = [model.new_kv_cache(3, length(runs) + 4) for model in (network, exact_network)]
    for model, cache in zip((network, exact_network), caches, strict=True):
        cache.fill_(7)
        model.prefill(cache, 1, 0, runs[:3])
        model.prefill(cache, 1, length(runs[:3]), runs[3:])
    assert torch.allclose(*caches, atol=1e-4)
    assert (caches[0][:, :, [0, 2]] == 7).all()


@pytest.mark.parametrize(("quantization", "times"), [("none", 1e-3), ("int8", 3.0), ("int4", 3.0)])
def test_a_prompt_in_pieces_is_the_same_prompt(
    folder: Path, tmp_path: Path, quantization: Quantization, times: float
) -> None:
    """As far as roundings allow: attention adds up in another order for one row than for many. Held to bfloat16's."""
    networks = exact_narrow_and_ours(folder, tmp_path, quantization)
    runs = some_prompt(6)

    def kept(network: HiggsNetwork, piece: int) -> Tensor:
        """Keys and values of the prompt."""
        cache = network.new_kv_cache(2, length(runs))
        for start in range(0, length(runs), piece):
            network.prefill(cache, 1, start, slice_runs(runs, start, start + piece))
        return cache[:, :, 1].float()

    exact, narrow, whole = (kept(network, length(runs)) for network in networks)
    for piece in (1, 7, 16):
        assert (kept(networks[-1], piece) - whole).norm() < times * (narrow - exact).norm()


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_behind_a_copied_prefix_every_bit_is_the_same(folder: Path, tmp_path: Path, quantization: Quantization) -> None:
    network = onnx_network(folder, quantization, tmp_path)
    runs, cache = some_prompt(7), KVCache(network, 3, 100)
    prefix = length(runs[:3])
    network.prefill(cache.tensor, 0, 0, runs[:3])
    cache.copy_in(2, cache.copy_out(0, prefix))
    logits = [network.prefill(cache.tensor, slot, prefix, runs[3:]) for slot in (0, 2)]
    assert torch.equal(*logits)
    assert torch.equal(cache.tensor[:, :, 0], cache.tensor[:, :, 2])
    assert not cache.tensor[:, :, 1].any()


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_a_row_has_the_same_bits_whoever_shares_the_batch(tmp_path: Path, quantization: Quantization) -> None:
    generator = torch.Generator().manual_seed(0)
    skeleton = HiggsNetwork(TRUE_WIDTH, torch.device("meta"), torch.float32)
    shapes = {name: parameter.shape for name, parameter in skeleton.named_parameters()}

    def weight_of(name: str) -> Tensor:
        return torch.randn(shapes[name], generator=generator) * (1.0 if "norm" in name else shapes[name][-1] ** -0.5)

    pack(tmp_path / "weights.safetensors", skeleton, weight_of, quantization)
    torch.set_num_threads(2)
    network = OnnxNetwork(TRUE_WIDTH, PackedWeights(tmp_path / "weights.safetensors"))
    torch.set_num_threads(1)
    slots = 9
    cache = network.new_kv_cache(slots, 300).normal_(generator=generator)
    rows = torch.randint(0, 1026, (slots, 8), generator=generator)
    positions = torch.randint(0, 300, (slots,), generator=generator)
    together = network.decode(cache.clone(), rows, positions, 300)
    for slots in (1, 2, 3, 4, 5, 8):
        few = network.decode(cache.clone(), rows[:slots], positions[:slots], int(positions[:slots].max()) + 1)
        assert torch.equal(few, together[:slots]), slots
    alone = network.decode(cache[:, :, 6:7].clone(), rows[6:7], positions[6:7], int(positions[6]) + 1)
    assert torch.equal(alone[0], together[6])
