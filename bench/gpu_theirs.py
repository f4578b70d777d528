"""Whom bench/gpu.py compares with, each in a process of its own: a frame for every line it reads, timed, as JSON.

python bench/gpu_theirs.py transformers FOLDER DEVICE dynamic|static | boson FOLDER DEVICE PACKAGES
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from peers import ROWS, TEXT_TOKENS, answer, commands, request, since
from true_shape import CONFIG, fill, quiet

from make_tiny_checkpoint import ORIGINAL_CONFIG


class Held:
    """A streamer that stops between two frames: tells how long the last took, and waits for the next command."""

    def __init__(self, device: torch.device, wanted: Iterator[str]) -> None:
        self._device, self._wanted = device, wanted
        self.asked = False
        self.end()

    def put(self, _: torch.Tensor) -> None:
        self._frames += 1
        if self._frames < 3:  # the prompt, and the step that read it
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        if self._frames > 3:
            answer(ms=since(self._began))
            self.asked = False
        if not self.asked:
            if next(self._wanted, None) is None:
                sys.exit()
            self.asked = True
        self._began = time.perf_counter()

    def end(self) -> None:
        self._frames, self._began = 0, 0.0


def hold(generate: Callable[[Held], object], device: torch.device) -> None:
    """Generates again and again, a frame for each command, or says for each why that failed."""
    wanted = commands()
    answer(ready=True)
    streamer = Held(device, wanted)
    while True:
        try:
            generate(streamer)
        except Exception as error:
            failed = f"{type(error).__name__}: {error}".splitlines()[0]
            if streamer.asked:
                answer(failed=failed)
            for _ in wanted:
                answer(failed=failed)
            return


def dtype_for(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def transformers(folder: Path, device: torch.device, cache: str) -> None:
    """transformers' generate, greedy. `cache`: dynamic or static."""
    from transformers import HiggsAudioV2ForConditionalGeneration

    model: Any = HiggsAudioV2ForConditionalGeneration.from_pretrained(folder, dtype=dtype_for(device))
    model.eval().to(device)
    text, rows, new_text = request(TEXT_TOKENS)
    clip = np.full(len(rows), model.config.audio_token_id)
    ids = torch.tensor(np.concatenate([text, clip, new_text]), device=device)[None]
    audio = torch.tensor(rows, device=device)[None]
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "audio_input_ids": audio,
        "audio_input_ids_mask": torch.ones_like(audio[..., 0], dtype=torch.bool),
        "max_new_tokens": ROWS,
        "do_sample": False,
        "cache_implementation": None if cache == "dynamic" else cache,
    }
    hold(lambda streamer: model.generate(**inputs, streamer=streamer), device)


def boson(folder: Path, device: torch.device, packages: str) -> None:
    """boson_multimodal's generate, greedy, as its serve engine sets it up: static cache, and graphs on CUDA.

    Its weights are random in their place. `packages`: the folder that it and its transformers are in.
    """
    sys.path.insert(0, packages)
    from boson_multimodal.model.higgs_audio import HiggsAudioConfig, HiggsAudioModel
    from transformers.cache_utils import StaticCache

    settings: dict[str, Any] = ORIGINAL_CONFIG | {"torch_dtype": str(dtype_for(device)).removeprefix("torch.")}
    if folder.name == "true":
        llama = settings["text_config"]
        settings |= {
            "text_config": llama | {key: CONFIG[key] for key in llama if key in CONFIG and key != "model_type"},
            "audio_dual_ffn_layers": list(range(CONFIG["num_hidden_layers"])),
            "audio_ffn_hidden_size": CONFIG["hidden_size"],
            "audio_ffn_intermediate_size": CONFIG["intermediate_size"],
        }
    config = HiggsAudioConfig(**{key: value for key, value in settings.items() if key != "architectures"})
    torch.set_default_dtype(dtype_for(device))
    with device:
        model: Any = HiggsAudioModel(config).eval()
    torch.set_default_dtype(torch.float32)
    with torch.inference_mode():
        fill((name, parameter.data) for name, parameter in model.named_parameters())
        quiet(model.audio_decoder_proj.audio_lm_head.weight.data)
    model.audio_out_bos_token_id, model.audio_eos_token_id = config.audio_out_bos_token_id, config.audio_eos_token_id
    layers = copy(config.text_config)
    layers.num_hidden_layers += len(config.audio_dual_ffn_layers)
    cache = StaticCache(layers, batch_size=1, max_cache_len=1024, device=device, dtype=model.dtype)
    if device.type == "cuda":
        model.capture_model([cache])
    text, rows, new_text = request(TEXT_TOKENS)
    ids = torch.tensor([*text, config.audio_in_token_idx, *new_text, config.audio_out_bos_token_id], device=device)
    inputs = {
        "input_ids": ids[None],
        "attention_mask": torch.ones_like(ids)[None],
        "audio_in_ids": torch.tensor(rows.T, device=device),
        "audio_in_ids_start": torch.zeros(1, dtype=torch.long, device=device),
        "max_new_tokens": ROWS,
        "do_sample": False,
        "past_key_values_buckets": {1024: cache},
    }

    @torch.inference_mode()
    def generate(streamer: Held) -> None:
        cache.reset()
        model.generate(**inputs, streamer=streamer)

    hold(generate, device)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["transformers", folder, device, cache]:
            transformers(Path(folder), torch.device(device), cache)
        case ["boson", folder, device, packages]:
            boson(Path(folder), torch.device(device), packages)
