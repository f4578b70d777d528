"""The true shape of Higgs Audio v2 with random weights: ms per decode frame beside the physical limit and transformers.

    python bench/true_shape.py [--frames 12] [--prompt 16] [--device auto] [--dtype bfloat16]

Each contestant runs in a process of its own, so the two are never in memory together, and prints its peak memory.
Needs the extra [higgs]; about 12 GB of memory in bfloat16.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

CONFIG: dict[str, Any] = {
    "model_type": "higgs_audio_v2",
    "vocab_size": 128256,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 0.125,
        "high_freq_factor": 0.5,
        "original_max_position_embeddings": 1024,
    },
    "num_codebooks": 8,
    "codebook_size": 1026,
    "audio_stream_bos_id": 1024,
    "audio_stream_eos_id": 1025,
}
END_ROWS = [k * 1026 + 1025 for k in range(8)]


def codec_config() -> Any:
    """The codec's true shape."""
    from transformers import HiggsAudioV2TokenizerConfig

    ratios = [8, 5, 4, 2, 3]
    return HiggsAudioV2TokenizerConfig(
        acoustic_model_config={"model_type": "dac", "downsampling_ratios": ratios, "upsampling_ratios": ratios},
        target_bandwidths=[0.5, 1, 1.5, 2],
    )


def fill(parameters: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Random numbers of a plausible size, one block of them over and over: quick, and all pages are touched."""
    block = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) * 0.02
    for name, parameter in parameters:
        if "norm" in name:
            parameter.fill_(1.0)
            continue
        source = block.to(parameter)
        for part in parameter.view(-1).split(len(source)):
            part.copy_(source[: len(part)])


def quiet(head: torch.Tensor) -> None:
    """No end code is ever the likeliest."""
    head[END_ROWS] = 0


def intervals(times: list[float]) -> list[float]:
    return [(b - a) * 1e3 for a, b in itertools.pairwise(times)]


def ours(frames: int, prompt: int, device: torch.device, dtype: torch.dtype) -> None:
    """The whole step: network, sampling, delay and end state, KV cache, as the engine's thread runs it."""
    from higgs_server.backends.higgs_v2.config import HiggsConfig
    from higgs_server.backends.higgs_v2.network import HiggsNetwork
    from higgs_server.engine.engine import Engine
    from higgs_server.engine.interface import AudioRun, TextRun
    from higgs_server.types import SamplingParams

    began = time.perf_counter()
    network = HiggsNetwork(HiggsConfig.from_dict(CONFIG), device, dtype)
    with torch.inference_mode():
        fill((name, p.data) for name, p in network.named_parameters())
        quiet(network.head.weight.data)
    weights = sum(p.nbytes for p in network.parameters())
    print(f"  weights {weights / 1e9:.2f} GB made in {time.perf_counter() - began:.1f} s")

    times: list[float] = []
    decode: Callable[..., torch.Tensor] = network.decode

    def timed(*args: Any, **options: Any) -> torch.Tensor:
        times.append(time.perf_counter())
        return decode(*args, **options)

    network.decode = timed  # type: ignore[method-assign]
    runs = [TextRun(np.arange(prompt, dtype=np.int64)), AudioRun(np.full((1, 8), 1024))]
    sampling = SamplingParams(temperature=0.0, seed=0, ras_win_len=0, max_new_tokens=frames + 2)
    began = time.perf_counter()
    with Engine(network, slots=1, max_len=1024) as engine, engine.submit(runs, sampling, repeat_limit=None) as handle:
        for _ in handle:
            pass
    report(times, began, prompt)
    print(f"  bytes read a frame {frame_bytes(network) / 1e9:.2f} GB")


def frame_bytes(network: Any) -> int:
    """What one decode step has to read: shared attention, audio branches, head."""
    text = sum(p.nbytes for name, p in network.named_parameters() if ".text." in name or name.endswith("_embedding"))
    return sum(p.nbytes for p in network.parameters()) - text


def theirs(frames: int, prompt: int, device: torch.device, dtype: torch.dtype) -> None:
    """transformers' generate, greedy, timed by its streamer."""
    import transformers
    from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

    print(f"  transformers {transformers.__version__}")
    began = time.perf_counter()
    config = HiggsAudioV2Config(**{key: value for key, value in CONFIG.items() if key != "model_type"})
    with torch.device("meta"):
        model = HiggsAudioV2ForConditionalGeneration(config).to(dtype)
    model = model.to_empty(device=device).eval()
    with torch.inference_mode():
        fill((name, p.data) for name, p in model.named_parameters())
        quiet(model.audio_lm_head.weight.data)
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    embeddings = model.model.embed_audio_tokens
    embeddings.audio_tokens_offsets = (torch.arange(8) * 1026).to(device)
    weights = sum(p.nbytes for p in model.parameters())
    print(f"  weights {weights / 1e9:.2f} GB made in {time.perf_counter() - began:.1f} s")

    times: list[float] = []

    class Clock:
        def put(self, _: torch.Tensor) -> None:
            times.append(time.perf_counter())

        def end(self) -> None:
            pass

    ids = torch.arange(prompt, device=device)[None]
    began = time.perf_counter()
    model.generate(
        ids, max_new_tokens=frames + 2, do_sample=False, streamer=Clock(), attention_mask=torch.ones_like(ids)
    )
    report(times[1:], began, prompt)  # the first is the prompt itself


def report(times: list[float], began: float, prompt: int) -> None:
    steps = intervals(times)[1:]
    print(
        f"  prefill of {prompt} tokens and first step {(times[0] - began) * 1e3:.0f} ms\n"
        f"  decode: median {statistics.median(steps):.0f} ms a frame, fastest {min(steps):.0f} ms, {len(steps)} frames"
        f" (real time is 40)"
    )
    print(f"  peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB", flush=True)
    print(f"MEDIAN {statistics.median(steps)} {min(steps)}")


def bandwidth(device: torch.device) -> float:
    """Bytes a second that this machine reads, with all of torch's threads: the best of several sums over 1 GB."""
    block = torch.ones(1 << 28, device=device)
    best = 0.0
    for _ in range(5):
        began = time.perf_counter()
        block.sum().item()
        best = max(best, block.nbytes / (time.perf_counter() - began))
    return best


def machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=12, help="decode frames that are timed")
    parser.add_argument("--prompt", type=int, default=16, help="text tokens that are prefilled")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--only", choices=("ours", "theirs"), help="run one contestant, in this process")
    args = parser.parse_args()
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    if args.only:
        run = ours if args.only == "ours" else theirs
        run(args.frames, args.prompt, device, dtype)
        return
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {machine()}, {torch.get_num_threads()} threads{load}, torch {torch.__version__}"
    )
    speed = bandwidth(device)
    print(f"memory bandwidth measured {speed / 1e9:.1f} GB/s")
    bytes_read, medians = 0.0, {}
    for name, title in (("ours", "higgs-audio-server"), ("theirs", "transformers generate")):
        print(title, flush=True)
        command = [sys.executable, __file__, "--only", name, "--device", args.device, "--dtype", args.dtype]
        command += ["--frames", str(args.frames), "--prompt", str(args.prompt)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        for line in done.stdout.splitlines():
            if line.startswith("MEDIAN"):
                medians[name] = float(line.split()[1])
            else:
                print(line)
            if "bytes read a frame" in line:
                bytes_read = float(line.split()[-2]) * 1e9
    floor = bytes_read / speed * 1e3
    print(
        f"floor {floor:.0f} ms a frame: ours {medians['ours'] / floor:.1f} times it, transformers "
        f"{medians['theirs'] / floor:.1f} times; ours is {medians['theirs'] / medians['ours']:.2f} times as fast"
    )


if __name__ == "__main__":
    main()
