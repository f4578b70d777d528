"""This server's side of bench/gpu.py, in a process of its own: reads a command a line, answers with a line of JSON.

    python bench/gpu_ours.py build tiny|true FOLDER | speak FOLDER DEVICE SLOTS QUANTIZATION

Commands: `steps BATCH COUNT`, `plain BATCH COUNT` (without graphs), `torch BATCH COUNT` (without kernels),
`profile COUNT`, `codec`, `memory`, `logits FILE`.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from peers import CONTEXT, ROWS, TEXT_TOKENS, Utterances, answer, commands, request, since
from true_shape import CONFIG, codec_config, fill, frame_bytes, quiet

from make_tiny_checkpoint import NATIVE_CONFIG, make_tiny_checkpoint, write_language_model

if TYPE_CHECKING:
    from higgs_server.backends.higgs_v2.network import HiggsNetwork
    from higgs_server.backends.higgs_v2.quantize import Quantization

WINDOW = 32
"""Frames that the codec decodes at a time, beside their context."""
CLIP_SECONDS = 8
FORCED = 40
"""Rows whose logits are compared."""


def build(folder: Path) -> None:
    """A checkpoint of the true shape, random weights in bfloat16, with the tests' small tokenizer and a codec."""
    from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

    from tiny_codec import write_tiny_codec

    settings = NATIVE_CONFIG | CONFIG | {"dtype": "bfloat16"}
    config = HiggsAudioV2Config(**{key: value for key, value in settings.items() if key != "model_type"})
    with torch.device("meta"):
        shapes = HiggsAudioV2ForConditionalGeneration(config).state_dict()
    weights = {name: torch.empty(tensor.shape, dtype=torch.bfloat16) for name, tensor in shapes.items()}
    fill(weights.items())
    quiet(weights["audio_lm_head.weight"])
    write_tiny_codec(folder / "codec", config=codec_config())
    write_language_model(folder, weights)
    (folder / "config.json").write_text(json.dumps(settings))


class Clock:
    """Moments on the device: CUDA's events, on a CPU the time of day."""

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._moments: list[Any] = []

    def mark(self) -> None:
        if not self._on_cuda:
            self._moments.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._moments.append(event)

    def intervals(self) -> list[float]:
        """Milliseconds between one moment and the next."""
        if not self._on_cuda:
            return [(b - a) * 1e3 for a, b in itertools.pairwise(self._moments)]
        torch.cuda.synchronize()
        return [a.elapsed_time(b) for a, b in itertools.pairwise(self._moments)]


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that a large copy reads and writes: the median of twenty."""
    source = torch.ones(1 << (28 if device.type == "cuda" else 22), device=device)
    target, clock = torch.empty_like(source), Clock(device)
    for _ in range(21):
        clock.mark()
        target.copy_(source)
    return 2 * source.nbytes / (float(np.median(clock.intervals())) / 1e3)


def speak(folder: Path, device: torch.device, slots: int, quantization: Quantization) -> None:
    """Steps as the engine's thread runs them, one launched before the last one is read."""
    from higgs_server.backends.higgs_v2.codec import load_codec
    from higgs_server.backends.higgs_v2.loading import load_model
    from higgs_server.engine.engine import PREFILL_BUDGETS
    from higgs_server.engine.graphs import CapturedSteps, CudaCapture
    from higgs_server.engine.runner import Runner
    from higgs_server.engine.sampler import NEAR, draw

    network = load_model(folder, device, "auto", quantization, lambda *_: None)
    weights = memory(device)
    runner = Runner(network, slots=slots, max_len=CONTEXT + ROWS, prefix_bytes=2**29)
    cache = runner._cache.tensor

    def in_torch(batch: int, length: int, reach: int) -> torch.Tensor:
        ours = network.fused, runner._draw
        network.fused, runner._draw = None, draw
        try:
            return runner._step(batch, length, max(reach, NEAR))
        finally:
            network.fused, runner._draw = ours

    on_cuda = device.type == "cuda"
    kinds = {"steps": runner.step, "plain": runner._step}
    kinds["torch"] = CapturedSteps(in_torch, CudaCapture()) if on_cuda else in_torch
    speech = Utterances(runner, PREFILL_BUDGETS["cuda"], TEXT_TOKENS)

    def steps(batch: int, count: int) -> list[float]:
        """Milliseconds from each to the next."""
        clock, unread = Clock(device), []
        for _ in range(count + 1):
            unread.append(speech.launch(range(batch)))
            clock.mark()
            while len(unread) > runner.lookahead:
                speech.read(unread.pop(0))
        for ticket in unread:
            speech.read(ticket)
        return clock.intervals()

    @contextmanager
    def speaking(batch: int) -> Iterator[None]:
        """Fresh utterances, warmed up."""
        for slot in range(batch):
            speech.start(slot, speech.text)
        steps(batch, 3)
        yield
        speech.stop(range(batch))

    answer(
        copy=copy_bandwidth(device),
        weights=step_bytes(network),
        position=cache[:, :, 0, :, 0].nbytes,
        dtype=str(network.dtype).removeprefix("torch."),
    )
    for command in commands():
        match command.split():
            case [("steps" | "plain" | "torch") as kind, batch, count]:
                runner.step = kinds[kind]
                with speaking(int(batch)):
                    answer(ms=steps(int(batch), int(count)))
            case ["profile", count]:
                runner.step = kinds["steps"]
                with speaking(1):
                    answer(kernels=profile(lambda count=int(count): steps(1, count), int(count) + 1, device))
            case ["codec"]:
                answer(**codec_speed(load_codec(folder / "codec", str(device)), 8 if on_cuda else 1))
            case ["logits", file]:
                np.save(file, forced_logits(network))
                answer()
            case ["memory"]:
                answer(weights=weights, cache=cache.nbytes / 1e9, now=memory(device))


def step_bytes(network: HiggsNetwork) -> int:
    """What a step reads of the weights."""
    return getattr(network, "step_bytes", None) or frame_bytes(network)


def forced_logits(network: HiggsNetwork) -> np.ndarray:
    """Logits [rows, codebooks, codebook_size] of the same prompt and the same rows behind it, whatever they say."""
    from higgs_server.engine.interface import AudioRun, TextRun

    text, rows, _ = request(TEXT_TOKENS)
    cache = network.new_kv_cache(1, CONTEXT)
    network.prefill(cache, 0, 0, [TextRun(text), AudioRun(rows[:-FORCED])])
    logits = []
    for position, row in enumerate(rows[-FORCED:], len(text) + len(rows) - FORCED):
        at = torch.tensor([position], device=network.device)
        logits.append(network.decode(cache, torch.tensor(row[None], device=network.device), at, CONTEXT)[0].cpu())
    return torch.stack(logits).numpy()


def memory(device: torch.device) -> float:
    """GB that this process holds of the device; of a CPU, none."""
    return torch.cuda.memory_reserved(device) / 1e9 if device.type == "cuda" else 0.0


def profile(work: Callable[[], object], steps: int, device: torch.device) -> list[tuple[str, float]]:
    """The kernels that take the most time in so many steps, and milliseconds a step."""
    from torch.profiler import ProfilerActivity

    on_cuda = device.type == "cuda"
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]) as recorded:
        work()
    times = [
        (each.key, (each.self_device_time_total if on_cuda else each.self_cpu_time_total) / 1e3 / steps)
        for each in recorded.key_averages()
    ]
    return sorted(times, key=lambda each: -each[1])[:12]


def codec_speed(codec: Any, batch: int) -> dict[str, float]:
    """Seconds of sound decoded a second, in windows as when streaming, and encoded."""
    dice = np.random.default_rng(0)
    context = codec.context_frames
    codes = dice.integers(0, 1024, (batch, WINDOW + 2 * context, 8))
    clip = dice.standard_normal(CLIP_SECONDS * codec.sampling_rate, dtype=np.float32) * 0.1

    def milliseconds(work: Callable[[], object], times: int) -> float:
        work()
        taken = []
        for _ in range(times):
            began = time.perf_counter()
            work()
            taken.append(since(began))
        return float(np.median(taken))

    new = batch * WINDOW / 25
    return {
        "batch": batch,
        "decode": new / milliseconds(lambda: codec.decode(codes, context, context), 5) * 1e3,
        "encode": CLIP_SECONDS / milliseconds(lambda: codec.encode(clip), 3) * 1e3,
    }


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["build", "true", folder]:
            build(Path(folder))
        case ["build", "tiny", folder]:
            make_tiny_checkpoint(folder)
        case ["speak", folder, device, slots, ("none" | "int8") as quantization]:
            speak(Path(folder), torch.device(device), int(slots), quantization)
