"""Reading the codec's checkpoints: which of the two layouts a folder holds, whether it is whole, and its tensors.

Native: transformers' HiggsAudioV2TokenizerModel (config.json, model.safetensors). Original: boson_multimodal's
HiggsAudioTokenizer (config.json, model.pth). Everything is checked from names and shapes before a tensor is read.
Knows no hub (folders only) and no device.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from higgs_server.backends.higgs_v2.codec_original import native_name, native_settings
from higgs_server.types import SAMPLING_RATE, LoadError

if TYPE_CHECKING:
    from transformers import HiggsAudioV2TokenizerConfig

NATIVE, ORIGINAL = "model.safetensors", "model.pth"
Shape = tuple[int, ...]

# What only training looks at.
_UNUSED = re.compile(
    r"decoder_semantic\.|fc1\.|fc_post1\.|semantic_model\.masked_spec_embed$"
    r"|quantizer\..*codebook\.(inited|cluster_size|embed_avg)$"
)
_WEIGHT_NORM = {
    ".weight_g": ".weight_v",
    ".parametrizations.weight.original0": ".parametrizations.weight.original1",
}


@dataclass(frozen=True)
class CodecCheckpoint:
    """A folder that holds a codec, by native names. The file is open only while something is read from it."""

    file: Path
    config: HiggsAudioV2TokenizerConfig
    shapes: Mapping[str, Shape]
    sources: Mapping[str, tuple[str, ...]]
    """The stored tensors that a tensor comes from: one, or weight norm's magnitude and direction."""

    def check(self, parts: Iterable[nn.Module]) -> None:
        """Raises LoadError unless the file holds every tensor of these networks (on any device), and nothing else."""
        wanted = {name: tuple(tensor.shape) for part in parts for name, tensor in part.state_dict().items()}
        missing = sorted(wanted.keys() - self.shapes.keys())
        extra = sorted(name for name in self.shapes.keys() - wanted.keys() if not _UNUSED.match(name))
        wrong = sorted(name for name in wanted.keys() & self.shapes.keys() if wanted[name] != self.shapes[name])
        if missing:
            raise _unfit(self.file, f"it lacks {_some(missing)}", f"缺少 {_some(missing)}")
        if extra:
            raise _unfit(self.file, f"it holds {_some(extra)} besides", f"多出 {_some(extra)}")
        if wrong:
            name = wrong[0]
            found, right = list(self.shapes[name]), list(wanted[name])
            raise _unfit(self.file, f"{name} is {found} instead of {right}", f"{name} 的形状是 {found}，应为 {right}")

    def load(self, part: nn.Module) -> None:
        """Gives a network built on the meta device its tensors: float32 on the CPU, owned, without gradients."""
        read = _reader(self.file)
        tensors = {name: _joined(*map(read, self.sources[name])) for name in part.state_dict()}
        part.load_state_dict(tensors, assign=True)
        part.requires_grad_(False)


def open_checkpoint(folder: Path) -> CodecCheckpoint:
    """Recognises the layout. Raises LoadError where the folder holds no codec or a file cannot be read."""
    from transformers import HiggsAudioV2TokenizerConfig

    settings = _read_settings(folder / "config.json")
    native = settings.get("model_type") == "higgs_audio_v2_tokenizer"
    if not native and not {"ratios", "n_q", "semantic_techer"} & settings.keys():
        kind = settings.get("model_type", "unknown")
        raise LoadError(
            f"{folder} holds no Higgs Audio v2 codec (model type {kind}); "
            "give --audio-tokenizer-path a folder or hub id of bosonai/higgs-audio-v2-tokenizer.",
            f"{folder} 中没有 Higgs Audio v2 编解码器（模型类型 {kind}）；"
            "请将 --audio-tokenizer-path 指向 bosonai/higgs-audio-v2-tokenizer 或其本地目录。",
        )
    file = folder / (NATIVE if native else ORIGINAL)
    if not file.is_file():
        raise LoadError(
            f"{folder} has a config.json but no {file.name}; download the codec again.",
            f"{folder} 中有 config.json，但缺少 {file.name}；请重新下载编解码器。",
        )
    stored = _stored_shapes(file)
    sources = _fold_weight_norm(file, stored)
    shapes = {name: stored[parts[-1]] for name, parts in sources.items()}
    try:
        if not native:
            settings = native_settings(folder, settings, shapes)
        config = HiggsAudioV2TokenizerConfig.from_dict(settings)
    except LoadError:
        raise
    except Exception as error:  # whatever a config.json can hold instead of what it should
        reason = " ".join(str(error).split())
        raise LoadError(
            f"{folder / 'config.json'} does not describe a codec: {reason}",
            f"{folder / 'config.json'} 不是有效的编解码器配置：{reason}",
        ) from None
    if config.sample_rate != SAMPLING_RATE:
        raise LoadError(
            f"{folder} holds a codec of {config.sample_rate} Hz; Higgs Audio v2 speaks at {SAMPLING_RATE} Hz.",
            f"{folder} 中的编解码器采样率为 {config.sample_rate} Hz；Higgs Audio v2 需要 {SAMPLING_RATE} Hz。",
        )
    if not native:
        blocks = len(settings["acoustic_model_config"]["downsampling_ratios"])
        names = {name: native_name(name, blocks) for name in sources}
        sources = {names[name]: parts for name, parts in sources.items()}
        shapes = {names[name]: shape for name, shape in shapes.items()}
    return CodecCheckpoint(file, config, shapes, sources)


def _unfit(file: Path, reason: str, zh: str) -> LoadError:
    return LoadError(
        f"{file} is not the codec that its config.json describes: {reason}; download it again.",
        f"{file} 与其 config.json 描述的编解码器不符：{zh}；请重新下载。",
    )


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (+{len(names) - 1})"


def _read_settings(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        settings = None
    if not isinstance(settings, dict):
        raise LoadError(
            f"{file} is missing or no JSON object; a codec's folder holds config.json and {NATIVE} or {ORIGINAL}.",
            f"{file} 不存在或不是 JSON 对象；编解码器目录应包含 config.json 以及 {NATIVE} 或 {ORIGINAL}。",
        )
    return settings


# --- files ----------------------------------------------------------------------------------------------------------


def _unreadable(file: Path, error: Exception) -> LoadError:
    reason = " ".join(str(error).split())[:200]
    return LoadError(
        f"{file} cannot be read as weights ({reason}); download the codec again.",
        f"无法从 {file} 读取权重（{reason}）；请重新下载编解码器。",
    )


def _stored_shapes(file: Path) -> dict[str, Shape]:
    """The name and shape of every tensor in the file."""
    if file.name == ORIGINAL:
        return {name: tuple(tensor.shape) for name, tensor in _unpickle(file).items()}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(file, error) from None


def _reader(file: Path) -> Callable[[str], Tensor]:
    """Reads tensors by their stored names."""
    if file.name == ORIGINAL:
        return _unpickle(file).__getitem__
    from safetensors import safe_open

    def read(name: str) -> Tensor:
        # Opened for each tensor, for what was read stays in memory until the file is closed.
        with safe_open(file, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
            return tensor

    return read


def _unpickle(file: Path) -> dict[str, Tensor]:
    """Only tensors are unpickled, and they stay in the file until they are looked at."""
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError:
        raise LoadError(
            f"{file} is refused: it is damaged, or holds more than tensors and could run code; download it again "
            "from a source that you trust.",
            f"已拒绝加载 {file}：文件已损坏，或其中不只是张量、可能会执行代码；请从可信来源重新下载。",
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise _unreadable(file, error) from None
    if not isinstance(stored, dict) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise _unreadable(file, ValueError("not a dictionary of tensors"))
    return stored


# --- weight norm (Salimans & Kingma 2016) ---------------------------------------------------------------------------


def _fold_weight_norm(file: Path, stored: Mapping[str, Shape]) -> dict[str, tuple[str, ...]]:
    """Where each tensor comes from; pairs of magnitude and direction appear as the one weight that they stand for."""
    sources: dict[str, tuple[str, ...]] = {name: (name,) for name in stored}
    for magnitude in stored:
        for suffix, partner in _WEIGHT_NORM.items():
            if magnitude.endswith(suffix):
                base = magnitude.removesuffix(suffix)
                direction = base + partner
                if direction not in stored:
                    raise _unfit(file, f"it lacks {direction}", f"缺少 {direction}")
                if not _is_norm(stored[magnitude], stored[direction]):
                    raise _unfit(file, f"{magnitude} does not fit {direction}", f"{magnitude} 与 {direction} 不匹配")
                del sources[magnitude], sources[direction]
                sources[f"{base}.weight"] = (magnitude, direction)
    return sources


def _is_norm(magnitude: Shape, direction: Shape) -> bool:
    """Whether the first can be the norm of the second over all axes but one."""
    same_rank = len(magnitude) == len(direction)
    return (
        same_rank
        and sum(size != 1 for size in magnitude) <= 1
        and all(size in (1, full) for size, full in zip(magnitude, direction, strict=True))
    )


def _joined(*parts: Tensor) -> Tensor:
    """One tensor, or magnitude and direction, as a float32 tensor of its own: the file may change or go away."""
    tensor = parts[-1].to(torch.float32, copy=True)
    if len(parts) == 1:
        return tensor
    magnitude = parts[0].to(torch.float32)
    # The norm runs over every axis that the magnitude does not have.
    axes = [axis for axis, size in enumerate(magnitude.shape) if size == 1]
    norm: Tensor = torch.linalg.vector_norm(tensor, dim=axes, keepdim=True)
    return tensor * (magnitude / norm)
