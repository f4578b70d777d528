"""The peers of bench/cpu.py, each in a process of its own: reads a command a line, answers with a line of JSON.

    python bench/cpu_peers.py ours FILE LAYERS | theirs LAYERS | codec | exactness LAYERS

ours and theirs: `prefill` a request from nothing, `step` one frame further; ours besides: `cached` (the request again,
its voice read before by another process), `four` (one step of four utterances), `memory`. Random weights, one request.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from peers import CODEC_CONTEXT, Utterances, answer, commands, request, since
from true_shape import CONFIG, codec_config, fill, quiet

FIRST_WINDOW = 2 + CODEC_CONTEXT
"""Frames of the first window: 2 to be heard, and context on their right."""
ROWS_TO_FIRST_SOUND = FIRST_WINDOW + 8
_AUDIO_TOKEN = 128015


def config_of(layers: int, **changes: Any) -> Any:
    from higgs_server.backends.higgs_v2.config import HiggsConfig

    return HiggsConfig.from_dict(CONFIG | {"num_hidden_layers": layers} | changes)


def memory() -> dict[str, float]:
    """This process's memory in GB: resident, of it its own, and the most there was."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("V"))
    rest = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if "Rss" in line)
    gb = {key: int(value.split()[0]) / 1e6 for key, value in (lines | rest).items() if "kB" in value}
    return {"resident": gb["VmRSS"], "own": gb["RssAnon"], "most": gb["VmHWM"]}


def build(file: Path, layers: int, quantization: str) -> None:
    """Packed weights of the true shape, at the speed of the disk: weights of one shape are made of the same rows.

    Their order differs: of weights that are equal to the bit, ONNX Runtime keeps and reads only one.
    """
    from higgs_server.backends.higgs_v2 import packed
    from higgs_server.backends.higgs_v2.network import HiggsNetwork

    skeleton = HiggsNetwork(config_of(layers), torch.device("meta"), torch.float32)
    shapes = {name: parameter.shape for name, parameter in skeleton.named_parameters()}

    def weight_of(name: str) -> Tensor:
        wide = torch.bfloat16 if name == "text_embedding" else torch.float32
        weight = torch.empty(shapes[name], dtype=wide)
        fill([(name, weight)])
        if name == "head.weight":
            quiet(weight)
        return weight

    made: dict[Any, Any] = {}

    def once(weight: Tensor, bits: int) -> tuple[Tensor, ...]:
        key = (weight.shape, bits)
        parts = made[key] if key in made else quantize(weight, bits)
        made[key] = tuple(part if part is None else part.roll(1, 0) for part in parts)
        return made[key]

    quantize = packed.quantize
    with mock.patch.object(packed, "quantize", once):
        packed.pack(file, skeleton, weight_of, quantization)  # type: ignore[arg-type]


def ours(file: Path, layers: int) -> None:
    """The whole step as the engine's thread runs it, sampling with the server's defaults included."""
    from higgs_server.backends.higgs_v2.onnx_model import OnnxNetwork
    from higgs_server.backends.higgs_v2.packed import PackedWeights
    from higgs_server.engine.engine import PREFILL_BUDGETS
    from higgs_server.engine.kv_cache import PrefixCache
    from higgs_server.engine.prefix_files import PrefixFiles
    from higgs_server.engine.runner import Runner

    network = OnnxNetwork(config_of(layers), PackedWeights(file))
    folder = tempfile.TemporaryDirectory()
    runner = Runner(network, slots=4, max_len=1024, prefix_bytes=2**29)
    speech = Utterances(runner, PREFILL_BUDGETS["cpu"])
    codec = random_codec()

    answer(ready=True, step_bytes=network.step_bytes)
    for command in commands():
        began = time.perf_counter()
        if command == "prefill":
            runner.prefixes = PrefixCache(2**29)  # nothing is known of the voice
            speech.start(0, speech.text)
            answer(ms=since(began))
        elif command == "step":
            speech.step([0])
            answer(ms=since(began))
        elif command == "keep":
            runner.prefixes = PrefixCache(2**29, PrefixFiles(Path(folder.name)))
            speech.stop([0])
            speech.start(0, speech.text)
            answer(done=True)
        elif command == "cached":
            speech.stop([0])
            runner.prefixes = PrefixCache(2**29, PrefixFiles(Path(folder.name)))  # as after a restart
            speech.start(0, speech.text + 1)
            prefilled = since(began)
            for _ in range(ROWS_TO_FIRST_SOUND - 1):
                speech.step([0])
            codec(0, FIRST_WINDOW)
            answer(ms=since(began), prefill=prefilled, hits=runner.prefixes.hits)
        elif command == "join":
            for slot in (1, 2, 3):
                speech.start(slot, speech.text)
            answer(done=True)
        elif command == "four":
            speech.step([0, 1, 2, 3])
            answer(ms=since(began))
        elif command == "memory":
            answer(**memory())


def theirs(layers: int) -> None:
    """transformers' generate in bfloat16, greedy, held up after each frame by its streamer.

    All layers share one text FFN's memory, which speeds its prefill up if anything, so that both peers fit in memory.
    """
    from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

    settings = CONFIG | {"num_hidden_layers": layers, "audio_token_id": _AUDIO_TOKEN, "audio_delay_token_id": 128014}
    config = HiggsAudioV2Config(**{key: value for key, value in settings.items() if key != "model_type"})
    with torch.device("meta"):
        model: Any = HiggsAudioV2ForConditionalGeneration(config).to(torch.bfloat16)
    for layer in model.model.layers[1:]:
        layer.mlp = model.model.layers[0].mlp
    model = model.to_empty(device="cpu").eval()
    with torch.inference_mode():
        fill((name, p.data) for name, p in model.named_parameters())
        quiet(model.audio_lm_head.weight.data)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    model.model.embed_audio_tokens.audio_tokens_offsets = torch.arange(8) * 1026
    text, rows, new_text = request()
    ids = torch.tensor(np.concatenate([text, np.full(len(rows), _AUDIO_TOKEN), new_text]))[None]
    audio = torch.tensor(rows)[None]
    wanted = commands()
    answer(ready=True)

    class Held:
        """Between two frames: tells how long the last took, and waits for the next command."""

        def __init__(self) -> None:
            self.began: float | None = None

        def put(self, _: Tensor) -> None:
            if self.began is not None:
                answer(ms=since(self.began))
                if next(wanted, None) != "step":
                    sys.exit()
            self.began = time.perf_counter()

        def end(self) -> None:
            pass

    assert next(wanted) == "prefill"
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        audio_input_ids=audio,
        audio_input_ids_mask=torch.ones(audio.shape[:2], dtype=torch.bool),
        max_new_tokens=600,
        do_sample=False,
        streamer=Held(),
    )


def random_codec() -> Callable[[int, int], Tensor]:
    """The speaking half of the codec in its true shape, for windows: frames of context on the left, all frames.

    Scaled so that no activation is large: the sine of a very large number takes several times as long.
    """
    from higgs_server.backends.higgs_v2.codec_network import CodecDecoder

    network = CodecDecoder(codec_config()).requires_grad_(False)
    for name, tensor in network.state_dict().items():
        if name.endswith("alpha"):
            tensor.fill_(1)
        else:
            tensor.normal_(std=tensor[0].numel() ** -0.5)

    def decode(left: int, frames: int) -> Tensor:
        with torch.inference_mode():
            return network(torch.randint(0, 1024, (1, frames, 8)), left, CODEC_CONTEXT)  # type: ignore[no-any-return]

    return decode


def codec() -> None:
    """Windows of the stream: frames of context on the left, all frames."""
    decode = random_codec()
    answer(ready=True)
    for command in commands():
        left, frames = map(int, command.split())
        began = time.perf_counter()
        decode(left, frames)
        answer(ms=since(began))


def outlier_weights(shapes: dict[str, torch.Size]) -> Callable[[str], Tensor]:
    """Weights with heavy tails, and 16 activations of 3,072 eight times as large, as trained networks have them."""

    def weight_of(name: str) -> Tensor:
        generator = torch.Generator().manual_seed(sum(name.encode()) * 31 + len(name))
        shape = shapes[name]
        if "norm" in name:
            weight = torch.ones(shape)
            weight[torch.randperm(len(weight), generator=generator)[:16]] = 8.0
            return weight
        weight = torch.empty(shape).normal_(generator=generator)
        weight *= torch.empty(shape).normal_(std=0.4, generator=generator).exp_()
        return weight.mul_(1.0 if name.endswith("embedding") else shape[-1] ** -0.5)

    return weight_of


def exactness(layers: int) -> None:
    """Logits against float32, teacher-forced over 24 frames."""
    from higgs_server.backends.higgs_v2 import packed, quantize
    from higgs_server.backends.higgs_v2.network import HiggsNetwork
    from higgs_server.backends.higgs_v2.onnx_model import OnnxNetwork
    from higgs_server.backends.higgs_v2.packed import PackedWeights
    from higgs_server.engine.interface import AudioRun, TextRun

    config = replace(config_of(layers), vocab_size=1000)
    shapes = {name: p.shape for name, p in HiggsNetwork(config, torch.device("meta"), torch.float32).named_parameters()}
    weight_of = cache(outlier_weights(shapes))
    dice = np.random.default_rng(0)
    runs = [TextRun(dice.integers(0, 1000, 30)), AudioRun(dice.integers(0, 1024, (40, 8)))]
    rows = torch.tensor(dice.integers(0, 1024, (24, 8)))

    def forced(network: HiggsNetwork) -> Tensor:
        kv_cache = network.new_kv_cache(1, 128)
        logits = [network.prefill(kv_cache, 0, 0, runs)]
        for place, row in enumerate(rows, start=70):
            logits.append(network.decode(kv_cache, row[None], torch.tensor([place]), place + 1)[0])
        return torch.stack(logits)

    @torch.no_grad()
    def filled(dtype: torch.dtype, int8: bool = False) -> HiggsNetwork:
        network = HiggsNetwork(config, torch.device("cpu"), dtype, int8=int8)
        for name, parameter in network.named_parameters():
            if (quantized := network.quantized(name)) is not None:
                quantized.fill(0, weight_of(name))
            else:
                parameter.copy_(weight_of(name))
        return network

    network = filled(torch.float32)
    exact = forced(network)
    network.to(torch.bfloat16).dtype = torch.bfloat16
    results = {"bfloat16": forced(network)}
    del network
    results["int8 in whole rows, the rest in bfloat16, as on a GPU"] = forced(filled(torch.bfloat16, int8=True))
    plain = mock.patch.object(quantize, "_between_ends", rounded_plainly)
    four = mock.patch.object(packed, "bits_for", lambda name, _: 4 if _is_product(name) else None)
    variants: list[tuple[str, str, list[Any]]] = [
        ("int8", "int8", []),
        ("int8 in blocks of 32", "int8", [mock.patch.dict(quantize._BLOCKS, {8: 32})]),
        ("int4", "int4", []),
        ("int4 in blocks of 128", "int4", [mock.patch.dict(quantize._BLOCKS, {4: 128})]),
        ("every product in 4 bits", "int4", [four]),
        ("every product in 4 bits, plain rounding", "int4", [four, plain]),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for label, kind, patches in variants:
            file = Path(folder) / f"{len(results)}.safetensors"
            skeleton = HiggsNetwork(config, torch.device("meta"), torch.float32)
            with contextlib.ExitStack() as stack:
                for patch in patches:
                    stack.enter_context(patch)
                packed.pack(file, skeleton, weight_of, kind)  # type: ignore[arg-type]
            results[label] = forced(OnnxNetwork(config, PackedWeights(file)))
            file.unlink()
    for label, logits in results.items():
        error = ((logits - exact).norm() / exact.norm()).item()
        agreement = (logits.argmax(-1) == exact.argmax(-1)).float().mean().item()
        answer(label=label, error=error, agreement=agreement)


def rounded_plainly(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As quantize._between_ends, but the largest weight decides alone, and zero is in the middle."""
    scales = blocks.abs().amax(-1, keepdim=True) / 7
    numbers = (blocks / scales).round() + 8
    return numbers.to(torch.uint8), scales[..., 0], torch.full(blocks.shape[:-1], 8, dtype=torch.uint8)


def _is_product(name: str) -> bool:
    return name.removesuffix(".weight").rpartition(".")[2] in ("qkv", "out", "gate_up", "down")


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
    match sys.argv[1:]:
        case ["build", file, layers, quantization]:
            build(Path(file), int(layers), quantization)
        case ["ours", file, layers]:
            ours(Path(file), int(layers))
        case ["theirs", layers]:
            theirs(int(layers))
        case ["codec"]:
            codec()
        case ["exactness", layers]:
            exactness(int(layers))
