"""Quantised weights on disk: built once from a checkpoint, mapped into memory at every start.

One safetensors file a checkpoint and kind of quantisation, in the assets folder of the hub's cache. It appears under
its name when it is complete and never changes. Knows which weights are quantised to how many bits; no graph and no
forward pass.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import torch
from huggingface_hub import cached_assets_path
from torch import Tensor

from higgs_server.backends.higgs_v2.checkpoint import (
    Stored,
    plan_weights,
    read_header,
    read_index,
    read_piece,
)
from higgs_server.backends.higgs_v2.config import HiggsConfig
from higgs_server.backends.higgs_v2.network import HiggsNetwork
from higgs_server.backends.higgs_v2.quantize import SCALES, ZEROS, Quantization, quantize
from higgs_server.types import LoadError, Progress

FORMAT = 2
"""Raised whenever the same checkpoint gives another file."""

_PRODUCTS = ("qkv", "out", "gate_up", "down")
_QUANTIZED = {"none": (), "int8": _PRODUCTS, "int4": (*_PRODUCTS, "head")}
_WIDE = ("qkv", "head")
"""In 8 bits in int4. In two layers of random weights with outliers, 4 bits in qkv alone gave the logits a relative
error of 0.51, in out 0.23, in gate_up 0.24, in down 0.17. What it gains in all: bench/RESULTS.md."""
_PARTIAL = ".partial"
_PARTIAL_SECONDS = 3600
"""A partial file that nobody has written to for so long is left over from a process that was killed."""
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.uint8: "U8"}
_SAMPLE_BYTES = 4096
_HEADER_BYTES = 512
"""Enough for what the header says of one parameter and its scales, a multiple of what torch wants to be aligned."""


class PackedWeights:
    """A file of weights, mapped. `fingerprint` tells it from every other."""

    def __init__(self, file: Path) -> None:
        self.fingerprint = file.stem
        self.folder = file.parent
        self.stored: dict[str, Stored] = dict(read_header(file))
        with file.open("rb") as stream:
            # Copy on write, though nobody writes: torch warns of memory it may not write to.
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)

    def __contains__(self, name: str) -> bool:
        return name in self.stored

    def __getitem__(self, name: str) -> Tensor:
        """The tensor, without reading it."""
        place = self.stored[name]
        values = torch.frombuffer(
            self._map, dtype=place.dtype or torch.uint8, count=math.prod(place.shape), offset=place.begin
        )
        return values.view(place.shape)

    def let_go(self) -> None:
        """Tells the system that the pages are not needed for now: they stop counting as this process's memory."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def cache_folder(kind: str) -> Path:
    """Where files that can be made again are kept: in the hub's cache, which HF_HOME moves."""
    return cached_assets_path("higgs-audio-server", namespace=kind)


def packed_weights(folder: Path, quantization: Quantization, progress: Progress | None = None) -> PackedWeights:
    """The packed weights of a checkpoint's folder, built if they are not there or cannot be read.

    Raises LoadError where the folder is no Higgs Audio v2 language model or the cache cannot be written.
    """
    name = f"{fingerprint(folder)}-{quantization}-v{FORMAT}.safetensors"
    try:
        file = cache_folder("weights") / name
        # One that was cut off, or that only another user may read, is replaced.
        with suppress(FileNotFoundError, PermissionError, LoadError):
            return PackedWeights(file)
        _remove_leftovers(file.parent)
        skeleton = HiggsNetwork(HiggsConfig.from_folder(folder), torch.device("meta"), torch.float32)
        pack(file, skeleton, _weights_of(folder, skeleton), quantization, progress)
        _remove_predecessors(file)
        return PackedWeights(file)
    except OSError as error:
        raise LoadError(
            f"The quantised weights cannot be kept: {error}. Free some space, or set HF_ASSETS_CACHE to a folder that "
            "has it and that you may write to.",
            f"无法保存量化后的权重：{error}。请腾出空间，或将 HF_ASSETS_CACHE 指向空间充足且可写的目录。",
        ) from None


def fingerprint(folder: Path) -> str:
    """Tells checkpoints apart without reading all of them.

    First by config, headers, sizes and each tensor's beginning; then, for what differs only behind that, such as a
    damaged download and the next one, by when the files were written.
    """
    digest = hashlib.blake2b((folder / "config.json").read_bytes(), digest_size=16)
    written = hashlib.blake2b(digest_size=8)
    stored = read_index(folder)
    for file in sorted({place.file for place in stored.values()}):
        status = file.stat()
        digest.update(f"{file.name} {status.st_size}".encode())
        written.update(f"{status.st_mtime_ns} ".encode())
        with file.open("rb", buffering=0) as stream:
            for name, place in sorted(stored.items()):
                if place.file == file:
                    stream.seek(place.begin)
                    digest.update(f"{name} {place.begin} {place.shape} {place.dtype}".encode())
                    digest.update(stream.read(_SAMPLE_BYTES))
    return f"{digest.hexdigest()}-{written.hexdigest()}"


def bits_for(parameter: str, quantization: Quantization) -> int | None:
    """How many bits a parameter's weights get; None for those that stay as they are."""
    part = parameter.removesuffix(".weight").rpartition(".")[2]
    if part in _QUANTIZED[quantization]:
        return 8 if quantization == "int8" or part in _WIDE else 4
    return None


def pack(
    file: Path,
    skeleton: HiggsNetwork,
    weight_of: Callable[[str], Tensor],
    quantization: Quantization,
    progress: Progress | None = None,
) -> None:
    """Writes a network's weights, asked for one after another by parameter's name, quantised into `file`.

    Other programs see the file whole or not at all. Raises OSError.
    """
    parameters = dict(skeleton.named_parameters())
    total, done = sum(parameter.numel() for parameter in parameters.values()), 0
    entries: dict[str, object] = {}
    room, offset = _HEADER_BYTES * len(parameters), 0
    partial = file.with_name(uuid4().hex + _PARTIAL)  # not tempfile's: other users of the cache may read it
    try:
        with partial.open("xb") as stream:
            stream.seek(room)
            for name, parameter in parameters.items():
                for key, tensor in _packed(name, weight_of(name), quantization):
                    place = [offset, offset + tensor.nbytes]
                    entries[key] = {"dtype": _NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": place}
                    offset += tensor.nbytes
                    stream.write(tensor.view(torch.uint8).numpy().data)
                done += parameter.numel()
                if progress:
                    progress(f"packing weights ({quantization})", done / total)
            header = json.dumps(entries).encode().ljust(room - 8)
            stream.seek(0)
            stream.write(struct.pack("<Q", len(header)) + header)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def _packed(name: str, weight: Tensor, quantization: Quantization) -> Iterator[tuple[str, Tensor]]:
    bits = bits_for(name, quantization)
    if bits is not None:
        for part, tensor in zip(("", SCALES, ZEROS), quantize(weight, bits), strict=True):
            if tensor is not None:
                yield name + part, tensor
    else:
        # A prompt needs few of the text's embeddings, so they stay as small as they are; all else is worked with.
        yield name, weight if name == "text_embedding" and weight.dtype == torch.bfloat16 else weight.float()


def _weights_of(folder: Path, skeleton: HiggsNetwork) -> Callable[[str], Tensor]:
    plan, parameters = plan_weights(folder, skeleton), dict(skeleton.named_parameters())

    def weight_of(name: str) -> Tensor:
        dtypes = {piece.stored.dtype for piece in plan[name]}
        weight = torch.empty(parameters[name].shape, dtype=dtypes.pop() if len(dtypes) == 1 else torch.float32)
        for piece in plan[name]:
            read_piece(weight, piece)
        return weight

    return weight_of


def _remove_predecessors(file: Path) -> None:
    """Removes other formats, and what was packed of the checkpoint before its files were written again."""
    checkpoint, _, quantization, _ = file.stem.split("-")
    for other in file.parent.glob(f"{checkpoint}-*{quantization}-v*.safetensors"):
        if other != file:
            with suppress(OSError):  # where another version of the server has it open and the system minds
                other.unlink()
                shutil.rmtree(cache_folder("prefixes") / other.stem, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    for partial in folder.glob(f"*{_PARTIAL}"):
        with suppress(OSError):
            if time.time() - partial.stat().st_mtime > _PARTIAL_SECONDS:
                partial.unlink()
