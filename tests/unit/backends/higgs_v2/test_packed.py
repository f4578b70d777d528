"""Packed weights on disk: built once, whole or not there, and told apart by what they were made of."""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from higgs_server.backends.higgs_v2 import packed
from higgs_server.backends.higgs_v2.checkpoint import Stored, read_header, read_index
from higgs_server.backends.higgs_v2.packed import PackedWeights, packed_weights
from higgs_server.backends.higgs_v2.quantize import SCALES, ZEROS, Quantization
from higgs_server.types import LoadError
from make_tiny_checkpoint import tiny_weights, write_language_model


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(packed, "cache_folder", lambda kind: cache)
    return cache


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_language_model(tmp_path / "model", tiny_weights(1))


def built(folder: Path, quantization: Quantization = "int8") -> tuple[PackedWeights, list[float]]:
    """The weights, and what progress was reported: none where they were there already."""
    progress: list[float] = []
    return packed_weights(folder, quantization, lambda stage, fraction: progress.append(fraction)), progress


def test_weights_are_packed_once_and_read_by_anybody(cache: Path, folder: Path) -> None:
    first, progress = built(folder)
    assert progress == sorted(progress)
    assert progress[-1] == 1.0
    second, progress = built(folder)
    assert progress == []
    (file,) = cache.iterdir()
    with safe_open(file, "pt") as stored:
        assert set(stored.keys()) == set(first.stored)
        for name in first.stored:
            assert torch.equal(stored.get_tensor(name), first[name])
            assert torch.equal(first[name], second[name])


def test_what_is_quantised_and_what_is_not(cache: Path, folder: Path) -> None:
    weights, _ = built(folder, "int4")
    for name, place in weights.stored.items():
        if name + SCALES in weights:
            narrow = "qkv" not in name and name != "head.weight"
            assert (name + ZEROS in weights) == narrow
            assert place.shape[2] == (16 if narrow else 64)  # blocks of 32 in 4 bits, of 64 in 8
        elif not name.endswith((SCALES, ZEROS)):
            assert place.dtype == torch.float32
    products = {f"layers.{layer}.{part}.weight" for layer in range(3) for part in ("qkv", "out")}
    for kind in ("text", "audio"):
        products |= {f"layers.{layer}.{kind}.{part}.weight" for layer in range(3) for part in ("gate_up", "down")}

    def quantised(weights: PackedWeights) -> set[str]:
        return {name.removesuffix(SCALES) for name in weights.stored if name.endswith(SCALES)}

    assert quantised(weights) == products | {"head.weight"}
    assert quantised(built(folder, "int8")[0]) == products
    assert not any(name.endswith(SCALES) for name in built(folder, "none")[0].stored)


def test_the_texts_embeddings_stay_as_small_as_they_are(cache: Path, tmp_path: Path) -> None:
    narrow = {name: tensor.bfloat16() for name, tensor in tiny_weights(1).items()}
    weights, _ = built(write_language_model(tmp_path / "narrow", narrow))
    assert torch.equal(weights["text_embedding"], narrow["model.embed_tokens.weight"])
    assert torch.equal(weights["head.weight"], narrow["audio_lm_head.weight"].float())


def test_the_memory_of_a_prompt_can_be_let_go(cache: Path, folder: Path) -> None:
    weights, _ = built(folder)
    before = weights["head.weight"].clone()
    weights.let_go()
    assert torch.equal(weights["head.weight"], before)


def change_a_weight(folder: Path) -> None:
    weights = tiny_weights(1)
    weights["model.layers.1.self_attn.o_proj.weight"][0, 0] += 1
    status = (folder / "model.safetensors").stat()
    write_language_model(folder, weights)
    os.utime(folder / "model.safetensors", ns=(status.st_atime_ns, status.st_mtime_ns))


def change_the_config(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(file.read_text().replace("500000.0", "10000.0"))


@pytest.mark.parametrize("change", [change_a_weight, change_the_config])
def test_another_checkpoint_has_other_weights(cache: Path, folder: Path, change: Callable[[Path], None]) -> None:
    first, _ = built(folder)
    change(folder)
    second, progress = built(folder)
    assert progress
    assert first.fingerprint != second.fingerprint
    assert len(list(cache.iterdir())) == 2
    assert built(folder, "int4")[0].fingerprint != second.fingerprint


def test_a_copy_of_the_folder_is_the_same_checkpoint(cache: Path, folder: Path, tmp_path: Path) -> None:
    built(folder)
    shutil.copytree(folder, tmp_path / "copy")
    assert built(tmp_path / "copy")[1] == []


def test_a_download_that_was_damaged_in_the_middle_is_packed_again_when_it_is_mended(
    cache: Path, folder: Path, tmp_path: Path
) -> None:
    """As the hub's cache has it: a link to a file that is written anew, under the same name and as large."""
    blob = (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(blob)
    sound, place = blob.read_bytes(), read_index(folder)["model.embed_tokens.weight"]
    middle, end = place.begin + packed._SAMPLE_BYTES, place.begin + 4 * math.prod(place.shape)
    assert middle < end
    blob.write_bytes(sound[:middle] + bytes(end - middle) + sound[end:])
    os.utime(blob, (1, 1))
    garbled, _ = built(folder)
    prefixes = cache / garbled.fingerprint
    prefixes.mkdir()
    blob.write_bytes(sound)
    mended, _ = built(folder)
    assert torch.equal(mended["text_embedding"], tiny_weights(1)["model.embed_tokens.weight"])
    assert garbled.fingerprint != mended.fingerprint
    assert [file.stem for file in cache.iterdir()] == [mended.fingerprint]


@pytest.mark.parametrize(
    ("interruption", "told"),
    [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(errno.ENOSPC, "No space left on device"), LoadError)],
)
def test_an_interrupted_build_leaves_nothing_behind(
    cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, interruption: BaseException, told: type[BaseException]
) -> None:
    def interrupted(name: str, *_: object) -> list[tuple[str, torch.Tensor]]:
        if name == "layers.1.qkv.weight":
            raise interruption
        return [(name, torch.zeros(1000))]

    with monkeypatch.context() as patch:
        patch.setattr(packed, "_packed", interrupted)
        with pytest.raises(told):
            built(folder)
    assert list(cache.iterdir()) == []
    assert built(folder)[1]


def test_what_a_killed_process_left_is_removed_and_what_another_is_writing_stays(cache: Path, folder: Path) -> None:
    left, current = cache / f"a{packed._PARTIAL}", cache / f"b{packed._PARTIAL}"
    left.write_bytes(b"half")
    os.utime(left, (1, 1))
    current.write_bytes(b"half")
    built(folder)
    assert not left.exists()
    assert current.exists()


def test_weights_in_the_format_of_another_version_make_room(cache: Path, folder: Path) -> None:
    weights, _ = built(folder)
    checkpoint, written, _ = weights.fingerprint.split("-", 2)
    (cache / f"{weights.fingerprint}.safetensors").unlink()
    others = ("x-int8-v1", f"{checkpoint}-int4-v1", f"{checkpoint}-{written}-int4-v1")
    for mine in (f"{checkpoint}-int8-v2", f"{checkpoint}-{written}-int8-v1"):
        (cache / f"{mine}.safetensors").write_bytes(b"old")
    for name in others:
        (cache / f"{name}.safetensors").write_bytes(b"another's")
    built(folder)
    assert {file.stem for file in cache.iterdir()} == {weights.fingerprint, *others}


@pytest.mark.parametrize("left", [0.0, 0.5, 1.0])
def test_a_file_that_was_cut_off_is_packed_again(cache: Path, folder: Path, left: float) -> None:
    weights, _ = built(folder)
    (file,) = cache.iterdir()
    sound = file.read_bytes()
    os.truncate(file, int(left * (len(sound) - 1)))
    again, progress = built(folder)
    assert progress
    assert again.fingerprint == weights.fingerprint
    assert file.read_bytes() == sound
    assert built(folder)[1] == []


def test_other_users_may_read_what_their_umask_lets_them(cache: Path, folder: Path, tmp_path: Path) -> None:
    built(folder)
    (file,) = cache.iterdir()
    usual = tmp_path / "usual"
    usual.touch()
    assert file.stat().st_mode == usual.stat().st_mode


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Numbers of files that cannot be read: their modes do not keep root, who may run this, from it."""
    locked: set[int] = set()

    def read(file: Path) -> Iterator[tuple[str, Stored]]:
        if file.stat().st_ino in locked:
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return read_header(file)

    monkeypatch.setattr(packed, "read_header", read)
    return locked


def test_what_only_another_user_may_read_is_packed_again(cache: Path, folder: Path, locked: set[int]) -> None:
    built(folder)
    (file,) = cache.iterdir()
    with file.open("rb"):  # open, it keeps its number
        locked.add(file.stat().st_ino)
        assert built(folder)[1]
    assert built(folder)[1] == []


def test_a_cache_that_is_another_users_is_told(
    cache: Path, folder: Path, locked: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    built(folder)
    (file,) = cache.iterdir()
    locked.add(file.stat().st_ino)

    def refused(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(packed, "pack", refused)
    with pytest.raises(LoadError, match="HF_ASSETS_CACHE"):
        built(folder)
