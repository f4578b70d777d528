"""The language model's weights: from safetensors files in either layout into the network's fused parameters.

Names, shapes, types and the machine's memory are checked from the files' headers before anything large is allocated.
Then each tensor is read straight into its place, so loading needs the weights' own size and little more. Nothing is
ever unpickled. Knows no hub (see hub.py) and no forward pass.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from higgs_server.backends.higgs_v2.config import HiggsConfig
from higgs_server.backends.higgs_v2.network import HiggsNetwork
from higgs_server.types import LoadError, Progress

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

# Speaking needs no text head; rotary tables are computed; the audio tower and training leftovers are for other uses.
_NOT_NEEDED = re.compile(
    r"(.*\.)?text_lm_head\.|(.*\.)?rotary_emb\.|(.*\.)?audio_codebook_weights$|audio_tower\.|audio_encoder_proj\."
)
# Fine-tuned originals keep embeddings and heads in two halves, the first frozen: boson_multimodal's PartiallyFrozen*.
_HALVES = {"embed_tokens.": "embedding", "audio_codebook_embeddings.": "embedding", "audio_lm_head.": "linear"}
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_STAGING_BYTES = 1 << 20
_HEADER_LIMIT = 100 << 20
"""safetensors' own limit on a header."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor's bytes are."""

    file: Path
    begin: int
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    """None for types that no float weight has."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor of the checkpoint and the rows of the parameter it fills."""

    name: str
    first_row: int
    stored: Stored


def load_network(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress | None = None,
    *,
    int8: bool = False,
) -> HiggsNetwork:
    """Reads a folder into a network on `device`; int8 quantises the layers' products on the way.

    Raises LoadError, before it allocates, where the folder is no Higgs Audio v2 language model, weights are missing,
    extra or misshapen, or memory does not suffice.
    """
    config = HiggsConfig.from_folder(folder)
    skeleton = HiggsNetwork(config, torch.device("meta"), dtype, int8=int8)
    plan = plan_weights(folder, skeleton)
    check_memory(weight_bytes(skeleton), device)
    try:
        network = HiggsNetwork(config, device, dtype, int8=int8)
    except (MemoryError, RuntimeError) as error:  # a limit that no figure shows, such as ulimit -v
        raise _no_memory(weight_bytes(skeleton), device, "less is free", "空闲不足") from error
    # In the order of the files: each is read once, from front to back.
    pieces = sorted(
        ((piece, name) for name, its in plan.items() for piece in its),
        key=lambda at: (at[0].stored.file, at[0].stored.begin),
    )
    total = sum(math.prod(piece.stored.shape) for piece, _ in pieces)
    done = 0
    for piece, name in pieces:
        _fill(network, name, piece)
        done += math.prod(piece.stored.shape)
        if progress:
            progress("loading weights", done / total)
    return network


def read_index(folder: Path) -> dict[str, Stored]:
    """Every tensor of a folder's safetensors files (one, or shards named by an index), from their headers alone."""
    if (folder / INDEX).is_file():
        try:
            shards = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
            if not all(isinstance(shard, str) for shard in shards):
                raise TypeError
        except (ValueError, KeyError, AttributeError, TypeError):
            raise LoadError(
                f"{folder / INDEX} is damaged: download the model again.", f"{folder / INDEX} 已损坏：请重新下载模型。"
            ) from None
    else:
        shards = [SINGLE]
    stored: dict[str, Stored] = {}
    for shard in shards:
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise LoadError(
                f"{folder} lacks the weights file {shard}: download the model again.",
                f"{folder} 缺少权重文件 {shard}：请重新下载模型。",
            )
        stored.update(read_header(folder / shard))
    return stored


def stored_dtype(folder: Path) -> torch.dtype | None:
    """The type that most of a folder's weights are stored in; None where that is no float type read here.

    Raises LoadError as `read_index` does.
    """
    size: Counter[torch.dtype | None] = Counter()
    for stored in read_index(folder).values():
        size[stored.dtype] += math.prod(stored.shape)
    return max(size, key=lambda dtype: size[dtype], default=None)


def weight_bytes(network: HiggsNetwork) -> int:
    """What the parameters take, on any device, meta included."""
    return sum(parameter.nbytes for parameter in network.parameters())


def check_memory(needed: int, device: torch.device) -> None:
    """Raises LoadError where `needed` bytes are more than the device has free. Unknown counts as enough."""
    free = _free_bytes(device)
    if free is not None and needed > free:
        gb = f"{free / 1e9:.1f} GB"
        raise _no_memory(needed, device, f"{gb} are free", f"空闲只有 {gb}")


def read_header(file: Path) -> Iterator[tuple[str, Stored]]:
    """The tensors of one file: 8 bytes of length, a JSON object, then data (safetensors' format)."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(size, _HEADER_LIMIT):
                raise ValueError("header too long")
            header = json.loads(stream.read(length))
        found = []
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            shape, dtype = tuple(entry["shape"]), _DTYPES.get(entry["dtype"])
            if not 8 + length <= begin <= end <= size or (dtype and end - begin != math.prod(shape) * dtype.itemsize):
                raise ValueError("tensor outside the data")
            found.append((name, Stored(file, begin, shape, dtype)))
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        raise LoadError(
            f"{file} is damaged or incomplete: download the model again.", f"{file} 已损坏或不完整：请重新下载模型。"
        ) from None
    yield from found


def plan_weights(folder: Path, skeleton: HiggsNetwork) -> dict[str, list[Piece]]:
    """Parameter -> the tensors that fill it. Raises LoadError where the checkpoint does not fit."""
    config, stored = skeleton.config, read_index(folder)
    plan: dict[str, list[Piece]] = {}
    missing: list[str] = []
    used: set[str] = set()
    for parameter, shape in ((name, tuple(p.shape)) for name, p in skeleton.named_parameters()):
        plan[parameter], row = [], 0
        sources = _sources(config, parameter)
        for source, rows in sources:
            want = (rows or shape[0], *shape[1:])
            names = _stored_names(source, stored)
            if not names:
                missing.append(source)
                continue
            shapes = [stored[name].shape for name in names]
            have = shapes[0]
            if all(len(shape) == len(want) and shape[1:] == have[1:] for shape in shapes):
                have = (sum(shape[0] for shape in shapes), *have[1:])
            if have != want:
                raise _unfit(
                    folder,
                    f"{names[0]} is {list(have)} where config.json asks for {list(want)}",
                    f"{names[0]} 的形状是 {list(have)}，而 config.json 要求 {list(want)}",
                )
            for name in names:
                if stored[name].dtype is None:
                    raise _unfit(
                        folder,
                        f"{name} is not stored as float32, bfloat16 or float16 (quantised checkpoints cannot be read)",
                        f"{name} 不是 float32、bfloat16 或 float16（不支持已量化的检查点）",
                    )
                plan[parameter].append(Piece(name, row, stored[name]))
                row += stored[name].shape[0]
            used.update(names)
    extra = sorted(name for name in stored.keys() - used if not _NOT_NEEDED.match(name))
    if missing:
        raise _unfit(folder, f"it lacks {_some(missing)}", f"缺少 {_some(missing)}")
    if extra:
        raise _unfit(folder, f"it holds {_some(extra)} besides", f"多出 {_some(extra)}")
    return plan


def _sources(config: HiggsConfig, parameter: str) -> list[tuple[str, int | None]]:
    """The checkpoint's names for one of our parameters, in row order, and their rows (None: all of them)."""
    native = config.layout == "native"
    model = "model." if native else ""
    top = {
        "text_embedding": f"{model}embed_tokens.weight",
        "audio_embedding": f"{model}embed_audio_tokens.embed_audio_tokens.weight"
        if native
        else "audio_codebook_embeddings.weight",
        "norm.weight": f"{model}norm.weight",
        "head.weight": "audio_lm_head.weight" if native else "audio_decoder_proj.audio_lm_head.weight",
    }
    if parameter in top:
        return [(top[parameter], None)]
    _, index, part, *rest = parameter.split(".")
    layer = f"{model}layers.{index}."
    if part == "out":
        return [(layer + "self_attn.o_proj.weight", None)]
    if part == "qkv":
        heads = {"q": config.num_heads, "k": config.num_kv_heads, "v": config.num_kv_heads}
        return [(f"{layer}self_attn.{x}_proj.weight", n * config.head_dim) for x, n in heads.items()]
    kind = "audio_" if part == "audio" else ""
    match rest[0]:
        case "input_norm":
            return [(f"{layer}{kind}input_layernorm.weight", None)]
        case "ffn_norm":
            return [(f"{layer}{kind}post_attention_layernorm.weight", None)]
        case "down":
            return [(f"{layer}{kind}mlp.down_proj.weight", None)]
        case _:
            size = config.audio_ffn_size if kind else config.text_ffn_size
            return [(f"{layer}{kind}mlp.{x}_proj.weight", size) for x in ("gate", "up")]


def _stored_names(source: str, stored: dict[str, Stored]) -> list[str]:
    """The tensors that make up `source`: itself, its frozen and trainable halves, or none."""
    if source in stored:
        return [source]
    for end, kind in _HALVES.items():
        if source.endswith(end + "weight"):
            halves = [source.removesuffix("weight") + f"{kind}_{half}.weight" for half in ("frozen", "trainable")]
            return halves if all(half in stored for half in halves) else []
    return []


def read_piece(parameter: Tensor, piece: Piece) -> None:
    """Fills the piece's rows of a parameter from the file, converting and copying in bounded pieces where needed."""
    stored = piece.stored
    place = parameter[piece.first_row : piece.first_row + stored.shape[0]]
    count = place.numel()
    assert stored.dtype is not None
    with stored.file.open("rb", buffering=0) as stream:
        stream.seek(stored.begin)
        if place.device.type == "cpu" and place.dtype == stored.dtype:
            _read_exactly(stream.fileno(), place, stored.file)
            return
        staging = torch.empty(min(count, _STAGING_BYTES // stored.dtype.itemsize), dtype=stored.dtype)
        flat = place.view(-1)
        for begin in range(0, count, len(staging)):
            part = staging[: min(len(staging), count - begin)]
            _read_exactly(stream.fileno(), part, stored.file)
            flat[begin : begin + len(part)].copy_(part)


def _read_exactly(fd: int, tensor: Tensor, file: Path) -> None:
    """Fills a contiguous CPU tensor. No mmap: pages of a mapped file would count as this process's memory."""
    room = memoryview(tensor.view(-1).view(torch.uint8).numpy().data)
    while len(room):
        got = os.readv(fd, [room])
        if not got:
            raise LoadError(f"{file} ended early: download the model again.", f"{file} 不完整：请重新下载模型。")
        room = room[got:]


def _fill(network: HiggsNetwork, name: str, piece: Piece) -> None:
    if (quantized := network.quantized(name)) is not None:
        rows = torch.empty(piece.stored.shape, dtype=piece.stored.dtype)
        read_piece(rows, replace(piece, first_row=0))
        quantized.fill(piece.first_row, rows)
    else:
        read_piece(network.get_parameter(name).data, piece)


def _free_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        return None  # not Linux
    return min(free, _free_in_cgroup(free))


def _free_in_cgroup(otherwise: int) -> int:
    """A container's own limit less what it uses, its page cache not counted as used."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        cache = int(stat["inactive_file"]) + int(stat["active_file"])
    except (OSError, ValueError, KeyError):
        return otherwise
    return otherwise if limit == "max" else int(limit) - used + cache


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _no_memory(needed: int, device: torch.device, free: str, zh: str) -> LoadError:
    need = f"{needed / 1e9:.1f} GB"
    smaller = ["--model-path embedded"] if device.type != "cuda" else ["--quantization int8", "--model-path embedded"]
    return LoadError(
        f"The weights need {need} on {device.type} and {free}: use a machine with more memory, close other programs, "
        f"or start with {' or '.join(smaller)}.",
        f"权重需要 {need}（{device.type}），而{zh}：请换用内存更大的机器、关闭其他程序，"
        f"或以 {' 或 '.join(smaller)} 启动。",
        code="out_of_memory",
    )


def _unfit(folder: Path, why: str, zh: str) -> LoadError:
    return LoadError(
        f"The weights in {folder} are not this model's: {why}. Download the model again, or name another folder.",
        f"{folder} 中的权重与模型不符：{zh}。请重新下载模型或另选目录。",
    )
