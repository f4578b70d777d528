"""The network against the golden rows and against transformers' own model on the same weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from devices import DEVICES
from higgs_server.backends.higgs_v2.checkpoint import load_network
from higgs_server.backends.higgs_v2.config import HiggsConfig
from higgs_server.backends.higgs_v2.loading import load_model
from higgs_server.backends.higgs_v2.network import HiggsNetwork
from higgs_server.backends.higgs_v2.tokenizer import HiggsTokenizer
from higgs_server.engine.interface import AudioRun, Run, TextRun
from make_tiny_checkpoint import EOS, prefer_end, tiny_weights, write_language_model
from reference_loop import greedy_rows, length

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "greedy_codes.json").read_text())["cases"]
AUDIO_TOKEN = 266

CLIP_TURN = (
    "<|start_header_id|>user<|end_header_id|>\n\nA clip says this.<|eot_id|><|start_header_id|>assistant"
    "<|end_header_id|>\n\n<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|><|eot_id|>"
)
LAST_TURN = (
    "<|start_header_id|>user<|end_header_id|>\n\nSay it, 说吧.<|eot_id|><|start_header_id|>assistant"
    "<|end_header_id|>\n\n<|audio_out_bos|>"
)

Load = Callable[..., Any]


@pytest.fixture(scope="module")
def reference() -> Load:
    """Loads a native folder as transformers' class, on the CPU, greedy, repetition-aware sampling off."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import HiggsAudioV2ForConditionalGeneration as Reference

    def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
        model = Reference.from_pretrained(folder, dtype=dtype).eval()
        del model.generation_config.ras_win_len
        return model

    return load


def prompt_with(clips: int, seed: int) -> tuple[str, list[np.ndarray]]:
    random = np.random.default_rng(seed)
    codes = [random.integers(0, 1024, (int(random.integers(1, 30)), 8)) for _ in range(clips)]
    return "<|begin_of_text|>" + CLIP_TURN * clips + LAST_TURN, codes


def as_reference_inputs(runs: list[Run]) -> dict[str, torch.Tensor]:
    """Our runs as transformers wants them: one id a position, and all audio rows in a line."""
    ids = np.concatenate([r.token_ids if isinstance(r, TextRun) else np.full(len(r.rows), AUDIO_TOKEN) for r in runs])
    inputs = {"input_ids": torch.tensor(ids)[None], "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    if rows := [r.rows for r in runs if isinstance(r, AudioRun)]:
        audio = torch.tensor(np.concatenate(rows))[None]
        inputs |= {"audio_input_ids": audio, "audio_input_ids_mask": torch.ones(audio.shape[:2], dtype=torch.bool)}
    return inputs


def reference_rows(model: Any, runs: list[Run], max_rows: int) -> np.ndarray:
    """What transformers' generate makes of a prompt (`runs` less the row that starts the answer)."""
    inputs = as_reference_inputs(runs[:-1])
    given = inputs["audio_input_ids"].shape[1] if "audio_input_ids" in inputs else 0
    with torch.inference_mode():
        sequence = model.generate(**inputs, max_new_tokens=max_rows, do_sample=False)
    return sequence[0, given:].numpy()


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_golden_rows(case: dict[str, Any]) -> None:
    folder = GOLDEN / "higgs-v2-tiny-original"
    network = load_network(folder, CPU, torch.float32)
    codes = [np.array(clip) for clip in case["reference_codes"]]
    runs = HiggsTokenizer(folder, network.config).runs(case["prompt"], codes)
    rows = greedy_rows(network, runs, case["max_new_tokens"])
    assert rows.tolist() == case["greedy_delayed_codes"]


@pytest.mark.parametrize("clips", [0, 1, 3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_generates_what_transformers_generates(tmp_path: Path, reference: Load, seed: int, clips: int) -> None:
    folder = write_language_model(tmp_path, tiny_weights(seed))
    network = load_network(folder, CPU, torch.float32)
    runs = HiggsTokenizer(folder, network.config).runs(*prompt_with(clips, seed))
    rows = greedy_rows(network, runs, 40)
    assert np.array_equal(rows, reference_rows(reference(folder), runs, 40))
    assert len(np.unique(rows[:, 0])) >= 4, "an answer in a loop proves little"


@pytest.mark.parametrize(
    ("clips", "codebook", "factor", "first_end"),
    [(0, 0, 40.0, 1), (1, 0, 1.5, 29), (1, 3, 40.0, 4), (1, 3, 2.0, 37), (1, 7, 6.0, 11), (1, 0, 0.0, None)],
)
def test_ends_as_transformers_ends(
    tmp_path: Path, reference: Load, clips: int, codebook: int, factor: float, first_end: int | None
) -> None:
    """End codes early and late, first in codebook 0 and in later ones, and none at all."""
    weights = tiny_weights(5)
    for k in range(8):
        prefer_end(weights, k, factor if k == codebook else 0.0)
    folder = write_language_model(tmp_path, weights)
    network = load_network(folder, CPU, torch.float32)
    runs = HiggsTokenizer(folder, network.config).runs(*prompt_with(clips, 7 * clips))
    rows = greedy_rows(network, runs, 50)
    ends = np.argwhere(rows == EOS).tolist()
    assert (ends[0] if ends else None) == (None if first_end is None else [first_end, codebook])
    assert np.array_equal(rows, reference_rows(reference(folder), runs, 50))


def teacher_forced(network: HiggsNetwork, runs: list[Run], rows: np.ndarray) -> torch.Tensor:
    """Logits [len(rows) + 1, codebooks, codes] after the prompt and after each further row."""
    cache, position = network.new_kv_cache(1, length(runs) + len(rows)), length(runs)
    logits = [network.prefill(cache, 0, 0, runs)]
    for offset, row in enumerate(rows):
        at = position + offset
        here = {"device": network.device}
        logits.append(network.decode(cache, torch.tensor(row, **here)[None], torch.tensor([at], **here), at + 1)[0])
    return torch.stack(logits).cpu()


@pytest.mark.parametrize("device", DEVICES)
def test_logits_are_transformers_logits(tmp_path: Path, reference: Load, device: str) -> None:
    folder = write_language_model(tmp_path, tiny_weights(3))
    config = HiggsConfig.from_folder(folder)
    runs = HiggsTokenizer(folder, config).runs(*prompt_with(2, 3))
    rows = np.random.default_rng(0).integers(0, 1026, (20, 8))
    inputs = {name: tensor.to(device) for name, tensor in as_reference_inputs([*runs, AudioRun(rows)]).items()}

    def theirs(dtype: torch.dtype) -> torch.Tensor:
        with torch.inference_mode():
            logits = reference(folder, dtype).to(device)(**inputs).logits
            return logits[0, -len(rows) - 1 :].float().view(-1, 8, 1026).cpu()

    def ours(dtype: torch.dtype) -> torch.Tensor:
        """As a server loads it: on a GPU with kernels for its steps."""
        name = str(dtype).removeprefix("torch.")
        return teacher_forced(load_model(folder, torch.device(device), name, "none", lambda *_: None), runs, rows)

    exact = theirs(torch.float32)
    assert (ours(torch.float32) - exact).abs().max() < 1e-4 * exact.std()
    # bf16 has its own rounding wherever operations are grouped otherwise: ours must be as close to fp32 as theirs.
    error = (ours(torch.bfloat16) - exact).square().mean().sqrt()
    their_error = (theirs(torch.bfloat16) - exact).square().mean().sqrt()
    assert error < 1.2 * their_error
    assert error < 0.15 * exact.std()


def test_a_layer_without_an_audio_branch_uses_the_texts(tmp_path: Path) -> None:
    """transformers has no such layers; a model whose audio branch equals the text's there must speak the same."""
    weights = tiny_weights(4)
    for name in [name for name in weights if ".layers.1.audio_" in name]:
        weights[name] = weights[name.replace(".audio_", ".")].clone()
    whole = load_network(write_language_model(tmp_path / "whole", weights), CPU, torch.float32)
    lean = {name: tensor for name, tensor in weights.items() if ".layers.1.audio_" not in name}
    folder = write_language_model(tmp_path / "lean", lean, "original")
    config = json.loads((folder / "config.json").read_text())
    config |= {"audio_adapter_type": "dual_ffn", "audio_dual_ffn_layers": [0, 2]}
    (folder / "config.json").write_text(json.dumps(config))
    shared = load_network(folder, CPU, torch.float32)
    runs = HiggsTokenizer(folder, shared.config).runs(*prompt_with(1, 1))
    assert np.array_equal(greedy_rows(shared, runs, 30), greedy_rows(whole, runs, 30))


def test_prefill_in_parts_and_decode_agree_with_prefill_at_once(tmp_path: Path) -> None:
    folder = write_language_model(tmp_path, tiny_weights(6))
    network = load_network(folder, CPU, torch.float32)
    runs = HiggsTokenizer(folder, network.config).runs(*prompt_with(2, 6))
    at_once = network.new_kv_cache(3, length(runs))
    logits = network.prefill(at_once, 1, 0, runs)
    in_parts, start = network.new_kv_cache(3, length(runs)), 0
    for run in runs:
        halves = (
            (TextRun(run.token_ids[:5]), TextRun(run.token_ids[5:]))
            if isinstance(run, TextRun)
            else tuple(AudioRun(row[None]) for row in run.rows)
        )
        for part in halves:
            if length([part]):
                last = network.prefill(in_parts, 1, start, [part])
                start += length([part])
    assert torch.allclose(last, logits, atol=1e-4)
    assert torch.allclose(in_parts, at_once, atol=1e-4)
    assert not at_once[:, :, [0, 2]].any(), "a slot's prefill stays in its slot"
    cut = length(runs) - 1
    decoded = network.decode(at_once[:, :, 1:2], torch.tensor(runs[-1].rows), torch.tensor([cut]), cut + 1)[0]  # type: ignore[union-attr]
    assert torch.allclose(decoded, logits, atol=1e-4)


@pytest.mark.parametrize("row_by_row", [True, False])
def test_attention_may_answer_in_another_layout(monkeypatch: pytest.MonkeyPatch, row_by_row: bool) -> None:
    """PyTorch's memory-efficient kernel for CUDA has the heads innermost."""
    network = load_network(GOLDEN / "higgs-v2-tiny-original", CPU, torch.float32)
    network.row_by_row = row_by_row
    run, row = TextRun(np.arange(9)), torch.zeros(1, 8, dtype=torch.int64)

    def logits() -> tuple[torch.Tensor, torch.Tensor]:
        cache = network.new_kv_cache(1, 10)
        return network.prefill(cache, 0, 0, [run]), network.decode(cache, row, torch.tensor([9]), 10)

    wanted = logits()
    contiguous = F.scaled_dot_product_attention

    def heads_innermost(*inputs: torch.Tensor, **options: torch.Tensor) -> torch.Tensor:
        return contiguous(*inputs, **options).transpose(1, 2).contiguous().transpose(1, 2)

    monkeypatch.setattr(F, "scaled_dot_product_attention", heads_innermost)
    assert all(map(torch.equal, logits(), wanted))


WIDE = replace(
    HiggsConfig.from_folder(GOLDEN / "higgs-v2-tiny-original"),
    hidden_size=1536, num_layers=1, num_heads=12, num_kv_heads=4, head_dim=128, text_ffn_size=8, audio_ffn_size=4096,
    audio_ffn_layers=frozenset([0]),
)  # fmt: skip


@pytest.mark.parametrize(
    "config", [HiggsConfig.from_folder(GOLDEN / "higgs-v2-tiny-original"), WIDE], ids=["tiny", "wide"]
)
def test_a_row_has_the_same_bits_whoever_shares_the_batch(config: HiggsConfig) -> None:
    network = HiggsNetwork(config, CPU, torch.float32)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        parameter.data.normal_(std=1.0 if "norm" in name else parameter.shape[-1] ** -0.5, generator=generator)
    slots = 19
    cache = network.new_kv_cache(slots, 300).normal_(generator=generator)
    rows = torch.randint(0, 1026, (slots, 8), generator=generator)
    positions = torch.randint(0, 300, (slots,), generator=generator)
    together = network.decode(cache.clone(), rows, positions, 300)
    for slot in (0, 7, 18):
        one = slice(slot, slot + 1)
        shortest = int(positions[slot]) + 1
        alone = network.decode(cache[:, :, one].clone(), rows[one], positions[one], shortest)
        assert torch.equal(alone[0], together[slot])
    few = network.decode(cache.clone(), rows[:5], positions[:5], 300)
    assert torch.equal(few, together[:5])
