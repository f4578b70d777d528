"""The kernels of a decode step against what they stand for, and the step made of them against the network's own."""

from __future__ import annotations

import itertools
import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from devices import DEVICES
from higgs_server.backends.higgs_v2.attention_kernel import attend, attend_run, splits_of
from higgs_server.backends.higgs_v2.checkpoint import load_network
from higgs_server.backends.higgs_v2.config import HiggsConfig
from higgs_server.backends.higgs_v2.fused import FusedSteps
from higgs_server.backends.higgs_v2.kernels import embed, norm, product
from higgs_server.backends.higgs_v2.network import HiggsNetwork, Norm
from higgs_server.backends.higgs_v2.projection import Projection
from higgs_server.backends.higgs_v2.quantize import quantize_rows
from higgs_server.engine import draw_kernel
from higgs_server.engine.interface import AudioRun, TextRun
from higgs_server.engine.runner import Runner, Ticket
from higgs_server.engine.scheduler import Piece
from higgs_server.engine.sequence import Sequence
from higgs_server.engine.trial import tried
from higgs_server.types import SamplingParams

CHECKPOINT = Path(__file__).parents[1] / "golden" / "higgs-v2-tiny-original"
COMPILE, GUARDED = (Path(__file__).parents[1] / name for name in ("compile_kernels.py", "guarded_kernels.py"))
FLOAT16, FLOAT32 = torch.float16, torch.float32


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def numbers(device: torch.device, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def difference(value: Tensor, reference: Tensor) -> float:
    return float((value.double() - reference.double()).norm() / reference.double().norm())


def root_mean_square(x: Tensor, gain: Tensor) -> Tensor:
    reference = Norm(x.shape[1], 1e-5, x.device, x.dtype)
    reference.weight.data = gain
    return reference(x)  # type: ignore[no-any-return]


# --- each kernel ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [64, 520])
def test_embeddings_of_a_row_are_summed(device: torch.device, hidden: int) -> None:
    table = numbers(device, 3 * 40, hidden)
    codes = torch.tensor([[0, 39, 7], [12, 0, 39]], device=device)
    expected = table[codes + torch.tensor([0, 40, 80], device=device)].sum(1)
    assert difference(embed(codes, table, 40), expected) < 1e-6


@pytest.mark.parametrize("hidden", [48, 1000])
def test_norms(device: torch.device, hidden: int) -> None:
    x, gain = numbers(device, 3, hidden) * 7, numbers(device, hidden, seed=1)
    assert difference(norm(x, gain, 1e-5), root_mean_square(x, gain)) < 1e-6


@pytest.mark.parametrize(("inputs", "outputs"), [(48, 40), (1100, 13)])
@pytest.mark.parametrize("rows", [1, 2, 17, 70])
@pytest.mark.parametrize("int8", [False, True])
def test_products_with_what_stands_around_them(
    device: torch.device, rows: int, inputs: int, outputs: int, int8: bool
) -> None:
    """Every combination; no sizes that are multiples of a kernel's blocks, so that every edge is one within a block."""
    x, gain = numbers(device, rows, inputs), numbers(device, inputs, seed=1)
    for gated, normed, added in itertools.product((False, True), repeat=3):
        if gated and added:
            continue
        weight = numbers(device, outputs * (1 + gated), inputs, seed=2) / inputs**0.5
        kept, scales = quantize_rows(weight) if int8 else (weight, None)
        weight = weight if scales is None else kept * scales[:, None]
        residual = numbers(device, rows, outputs, seed=3)
        expected = F.linear(root_mean_square(x, gain) if normed else x, weight)
        if gated:
            gate, up = expected.chunk(2, dim=1)
            expected = F.silu(gate) * up
        expected = expected + residual if added else expected
        result = product(
            x, kept, scales, gain=gain if normed else None, eps=1e-5, gated=gated, residual=residual if added else None
        )
        assert result.shape == (rows, outputs)
        assert difference(result, expected) < 2e-6, (gated, normed, added)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_product_is_rounded_where_the_network_rounds(device: torch.device, rows: int) -> None:
    """In half precision: the norm, each half of the gate, their product and the sum with the residual."""
    x, gain = (numbers(device, rows, 64).to(FLOAT16), numbers(device, 64, seed=1).to(FLOAT16))
    kept, scales = quantize_rows(numbers(device, 32, 64, seed=2) / 8)
    y = (root_mean_square(x, gain).float() @ kept.float().T * scales).to(FLOAT16)
    gate, up = y.chunk(2, dim=1)
    around: list[tuple[dict[str, Any], Tensor]] = [({"gated": True}, F.silu(gate) * up), ({"residual": y}, y + y)]
    for arguments, expected in around:
        result = product(x, kept, scales, gain=gain, eps=1e-5, **arguments)
        assert (result - expected).abs().max() <= 2 * torch.finfo(FLOAT16).eps * expected.abs().max()
        assert (result == expected).float().mean() > 0.9


@pytest.mark.parametrize("splits", [1, 2, 5])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 1), (2, 2)])
def test_attention_over_each_slots_own_past(device: torch.device, heads: int, kv_heads: int, splits: int) -> None:
    """What lies behind a slot's position is not looked at, however large; parts without positions say nothing."""
    size, length, places = 16, 300, [0, 63, 64, 200, 299]
    batch = len(places)
    keys, values = (numbers(device, batch, kv_heads, length, size, seed=seed) for seed in (1, 2))
    qkv, angles = numbers(device, batch, heads + 2 * kv_heads, size), numbers(device, length, size // 2, seed=3)
    for slot, place in enumerate(places):
        keys[slot, :, place:], values[slot, :, place:] = torch.nan, torch.nan
    kept_keys, kept_values = keys.clone(), values.clone()
    positions = torch.tensor(places, device=device)
    result = attend(qkv, angles.cos(), angles.sin(), keys, values, positions, kv_heads, splits)
    assert result.shape == (batch, heads * size)
    for slot, place in enumerate(places):
        cos, sin = angles[place].cos(), angles[place].sin()
        first, second = qkv[slot, : heads + kv_heads].chunk(2, dim=-1)
        turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
        kept_keys[slot, :, place], kept_values[slot, :, place] = turned[heads:], qkv[slot, heads + kv_heads :]
        past = (kept[slot, :, : place + 1].repeat_interleave(heads // kv_heads, 0) for kept in (kept_keys, kept_values))
        expected = F.scaled_dot_product_attention(turned[:heads, None], *past).flatten()
        assert difference(result[slot], expected) < 2e-6, place
    assert torch.allclose(keys, kept_keys, atol=1e-6, equal_nan=True), "the new keys are written, and nothing else is"
    assert torch.equal(values.nan_to_num(9), kept_values.nan_to_num(9))


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 1)])
@pytest.mark.parametrize(("start", "count", "rows"), [(0, 1, 32), (0, 40, 64), (63, 33, 40), (200, 64, 64)])
def test_attention_of_a_run(device: torch.device, heads: int, kv_heads: int, start: int, count: int, rows: int) -> None:
    """Each row sees what was there and the run up to itself; what fills the run up is written nowhere."""
    size, length, end = 16, 300, start + count
    keys, values = (numbers(device, 3, kv_heads, length, size, seed=seed) for seed in (1, 2))
    keys[1, :, start:], values[1, :, start:] = torch.nan, torch.nan
    kept_keys, kept_values = keys.clone(), values.clone()
    qkv, angles = numbers(device, rows, heads + 2 * kv_heads, size), numbers(device, length, size // 2, seed=3)
    cos, sin = angles[start:end, None].cos(), angles[start:end, None].sin()
    first, second = qkv[:count, : heads + kv_heads].chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).transpose(0, 1)
    kept_keys[1, :, start:end] = turned[heads:]
    kept_values[1, :, start:end] = qkv[:count, heads + kv_heads :].transpose(0, 1)
    past = (kept[1, :, :end].repeat_interleave(heads // kv_heads, 0) for kept in (kept_keys, kept_values))
    seen = torch.arange(end, device=device) <= torch.arange(start, end, device=device)[:, None]
    expected = F.scaled_dot_product_attention(turned[:heads], *past, attn_mask=seen).transpose(0, 1).flatten(1)

    place = torch.tensor([1, start, count], device=device)
    result = attend_run(qkv, angles.cos(), angles.sin(), keys, values, place, kv_heads)
    assert result.shape == (rows, heads * size)
    assert difference(result[:count], expected) < 2e-6
    assert torch.allclose(keys, kept_keys, atol=1e-6, equal_nan=True), "the run's keys are written, and nothing else is"
    assert torch.equal(values.nan_to_num(9), kept_values.nan_to_num(9))


def test_a_past_is_split_while_that_makes_use_of_the_gpu() -> None:
    assert splits_of(programs=8, max_len=64, processors=132) == 1, "too short"
    assert splits_of(programs=8, max_len=500, processors=132) == 8
    assert splits_of(programs=16, max_len=100_000, processors=132) == 16, "no more than twice the processors"
    assert splits_of(programs=1, max_len=100_000, processors=132) == 32, "as many as are joined"
    assert splits_of(programs=8 * 64, max_len=4096, processors=132) == 1, "busy without"


# --- the step -------------------------------------------------------------------------------------------------------


def a_network(device: torch.device, *, int8: bool = False) -> HiggsNetwork:
    """Smaller than the smallest checkpoint: an interpreter takes its time."""
    config = replace(
        HiggsConfig.from_folder(CHECKPOINT), num_layers=2, codebook_size=70, stream_bos_id=68, stream_eos_id=69
    )
    network = HiggsNetwork(config, device, FLOAT32, int8=int8)
    network.row_by_row = False
    for seed, parameter in enumerate(network.parameters()):
        if parameter.dtype == FLOAT32:
            parameter.data = numbers(device, *parameter.shape, seed=seed) / parameter.shape[-1] ** 0.5
    for seed, module in enumerate(network.modules()):
        if isinstance(module, Projection) and module.scales is not None:
            module.fill(0, numbers(device, *module.weight.shape, seed=seed) / module.weight.shape[1] ** 0.5)
    return network


@pytest.mark.parametrize("int8", [False, True])
def test_a_fused_step_is_the_networks_step(device: torch.device, int8: bool) -> None:
    network = a_network(device, int8=int8)
    fused = FusedSteps(network)
    for batch, length in ((1, 256), (1, 600), (5, 600)):
        cache = numbers(device, *network.new_kv_cache(batch, 600).shape)
        rows = torch.randint(70, (batch, 8), generator=torch.Generator().manual_seed(batch)).to(device)
        positions = torch.arange(1, batch + 1, device=device) * (length // batch) - 1
        ours, plain = cache.clone(), cache.clone()
        with torch.inference_mode():
            result, expected = (decode(kept, rows, positions, length) for decode, kept in
                                ((fused.decode, ours), (network.decode, plain)))  # fmt: skip
        assert difference(result, expected) < 1e-5
        assert torch.allclose(ours, plain, atol=1e-5)


@pytest.mark.parametrize("int8", [False, True])
def test_text_is_read_as_the_network_reads_it(device: torch.device, int8: bool) -> None:
    network = a_network(device, int8=int8)
    fused = FusedSteps(network)
    text = torch.randint(network.config.vocab_size, (40,), generator=torch.Generator().manual_seed(1))
    cache = numbers(device, *network.new_kv_cache(3, 200).shape)
    ours, plain = cache.clone(), cache.clone()
    with torch.inference_mode():
        fused.read_text(ours, F.pad(text, (0, 24)).to(device), torch.tensor([2, 77, 40], device=device))
    network.prefill(plain, 2, 77, [TextRun(text.numpy())])
    assert torch.allclose(ours, plain, atol=1e-5)
    assert not torch.equal(plain, cache)


def test_utterances_are_the_same_by_kernels(device: torch.device) -> None:
    """Prompts read as text and not, kept prefixes, padded and captured steps, rows drawn by kernels."""
    plain = a_network(device)
    fused = a_network(device)
    fused.fused = FusedSteps(fused)
    spoken = []
    for network in (plain, fused):
        runner = Runner(network, slots=4, max_len=300, prefix_bytes=1 << 20)
        runner.padded = True
        if network is fused:
            runner._draw = draw_kernel.draw
        sequences = []
        for slot, (length, prefix_len) in enumerate([(9, 0), (50, 7), (50, 7), (3, 0)]):
            dice = np.random.default_rng(length)
            clip = [AudioRun(dice.integers(0, 60, (5, 8)))] if slot == 3 else []
            begin = AudioRun(np.full((1, 8), network.stream_bos_id))
            runs = [TextRun(dice.integers(0, 200, length)), *clip, TextRun(dice.integers(0, 200, 4)), begin]
            sampling = SamplingParams(seed=slot, max_new_tokens=13, temperature=0.0, ras_win_len=0)
            sequence = Sequence(runs, sampling, runner.format, prefix_len=prefix_len)
            sequence.slot = slot
            sequences.append(sequence)
            while sequence.prefilling:
                stop = sequence.next_cut(sequence.prefilled, 40)
                if ticket := runner.prefill(Piece(sequence, sequence.prefilled, stop)):
                    take(runner, ticket)
        while drawing := [each for each in sequences if each.drawing]:
            take(runner, runner.decode(drawing, sequences))
        assert runner.prefixes.hits == 1
        spoken.append([sequence.rows.tolist() for sequence in sequences])
    assert spoken[0] == spoken[1]


def take(runner: Runner, ticket: Ticket) -> None:
    for sequence, row in runner.read(ticket):
        assert row is not None
        sequence.append(row)


def test_weights_in_8_bits_are_close_to_those_they_stand_for(device: torch.device) -> None:
    exact, int8 = (load_network(CHECKPOINT, device, FLOAT32, int8=kept) for kept in (False, True))
    assert int8.layers[0].qkv.weight.dtype == torch.int8
    assert int8.head.weight.dtype == int8.audio_embedding.dtype == FLOAT32
    rows = torch.randint(1026, (4, 8), generator=torch.Generator().manual_seed(0)).to(device)
    results = []
    for network in (exact, int8):
        cache = numbers(device, *network.new_kv_cache(4, 64).shape)
        results.append(network.decode(cache, rows, torch.arange(4, device=device) * 9, 64))
    assert 0 < difference(results[1], results[0]) < 0.02


# --- trials ---------------------------------------------------------------------------------------------------------


def test_kernels_are_tried_before_they_are_trusted(device: torch.device, caplog: pytest.LogCaptureFixture) -> None:
    network = a_network(device, int8=True)
    with caplog.at_level(logging.WARNING):
        assert tried("Steps run", lambda: FusedSteps.tried(network)) is not None
    assert not caplog.records


@pytest.mark.parametrize("part", ["embed", "attend", "attend_run", "product"])
def test_a_kernel_that_computes_something_else_is_found_out(
    device: torch.device, part: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = "higgs_server.backends.higgs_v2.fused"
    right = getattr(sys.modules[module], part)

    def wrong(*arguments: Any, **around: Any) -> Tensor:
        around.pop("residual", None)
        result: Tensor = right(*arguments, **around)
        return result if part == "product" else result.roll(1, -1)

    monkeypatch.setattr(f"{module}.{part}", wrong)
    with caplog.at_level(logging.WARNING):
        assert tried("Steps run", lambda: FusedSteps.tried(a_network(device))) is None
    assert caplog.messages == ["Steps run without kernels of their own, slower: their results differ from PyTorch's"]


def test_a_key_that_is_not_written_is_found_out(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, *others: Any) -> Tensor:
        return attend(qkv, cos, sin, keys.clone(), *others)

    monkeypatch.setattr("higgs_server.backends.higgs_v2.fused.attend", forgetful)
    assert FusedSteps.tried(a_network(device)) is None


def test_a_trial_that_fails_says_why(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def trial() -> None:
        raise RuntimeError("Failed to find C compiler")

    assert tried("Steps run", trial) is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert tried("Steps run", lambda: 1) is None
    reasons = [message.removeprefix("Steps run without kernels of their own, slower: ") for message in caplog.messages]
    assert reasons == ["RuntimeError: Failed to find C compiler", "Triton is not installed"]


# --- real GPUs ------------------------------------------------------------------------------------------------------


def test_every_kernel_compiles_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    """At the true model's shapes; what they need fits every card of a kind."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, str(COMPILE), "80", "90"]
    said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    compiled = [json.loads(line) for line in said.splitlines()]
    layers = {"_embed", "_one_row", "_rows", "_norm", "_gate", "_attend", "_join", "_write_run", "_attend_run"}
    assert {line["kernel"] for line in compiled} == layers | {"_draw_codes", "_move_on"}
    assert {line["sm"] for line in compiled} == {80, 90}
    for line in compiled:
        assert line["shared"] <= 99 * 1024, f"{line}: more than a block may have on a 4090"
        assert line["local"] == 0, f"{line}: registers do not suffice"


def test_no_kernel_reads_or_writes_beside_its_tensors_and_none_leaves_anything_out() -> None:
    def run(*arguments: str) -> int:
        return subprocess.run([sys.executable, str(GUARDED), *arguments], capture_output=True).returncode

    assert run("beyond") == -signal.SIGSEGV, "going beyond is not caught"
    assert run() == 0
