from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from higgs_server.backends.higgs_v2 import checkpoint
from higgs_server.backends.higgs_v2.checkpoint import load_network, stored_dtype, weight_bytes
from higgs_server.backends.higgs_v2.network import HiggsNetwork
from higgs_server.backends.higgs_v2.quantize import quantize_rows
from higgs_server.types import LoadError
from make_tiny_checkpoint import original_name, tiny_weights, write_language_model

CPU = torch.device("cpu")
Weights = dict[str, Tensor]


def load(folder: Path, dtype: torch.dtype = torch.float32) -> HiggsNetwork:
    return load_network(folder, CPU, dtype)


def parameters(network: HiggsNetwork) -> Weights:
    return {name: parameter.data for name, parameter in network.named_parameters()}


def assert_same(one: HiggsNetwork, other: HiggsNetwork) -> None:
    ours, theirs = parameters(one), parameters(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def test_every_weight_is_in_its_place(tmp_path: Path) -> None:
    weights = tiny_weights(0)
    network = parameters(load(write_language_model(tmp_path, weights)))
    layer = "model.layers.2."
    fused = {
        "layers.2.qkv.weight": [f"{layer}self_attn.{x}_proj.weight" for x in "qkv"],
        "layers.2.out.weight": [f"{layer}self_attn.o_proj.weight"],
        "layers.2.text.gate_up.weight": [f"{layer}mlp.{x}_proj.weight" for x in ("gate", "up")],
        "layers.2.audio.gate_up.weight": [f"{layer}audio_mlp.{x}_proj.weight" for x in ("gate", "up")],
        "layers.2.audio.down.weight": [f"{layer}audio_mlp.down_proj.weight"],
        "layers.2.text.input_norm.weight": [f"{layer}input_layernorm.weight"],
        "layers.2.audio.ffn_norm.weight": [f"{layer}audio_post_attention_layernorm.weight"],
        "text_embedding": ["model.embed_tokens.weight"],
        "audio_embedding": ["model.embed_audio_tokens.embed_audio_tokens.weight"],
        "head.weight": ["audio_lm_head.weight"],
        "norm.weight": ["model.norm.weight"],
    }
    for name, sources in fused.items():
        assert torch.equal(network[name], torch.cat([weights[source] for source in sources])), name


def test_the_original_layout_is_the_same_model(tmp_path: Path) -> None:
    weights = tiny_weights(1)
    assert_same(
        load(write_language_model(tmp_path / "native", weights)),
        load(write_language_model(tmp_path / "original", weights, "original")),
    )


def test_frozen_and_trainable_halves_are_put_together(tmp_path: Path) -> None:
    weights = tiny_weights(2)
    whole = load(write_language_model(tmp_path / "whole", weights, "original"))
    folder = write_language_model(tmp_path / "halves", weights, "original")
    stored = {original_name(name): tensor for name, tensor in weights.items()}
    for name, kind in (
        ("embed_tokens", "embedding"),
        ("audio_codebook_embeddings", "embedding"),
        ("audio_decoder_proj.audio_lm_head", "linear"),
        ("audio_decoder_proj.text_lm_head", "linear"),
    ):
        frozen, trainable = stored.pop(f"{name}.weight").split([200, len(weights_of(weights, name)) - 200])
        stored |= {f"{name}.{kind}_frozen.weight": frozen, f"{name}.{kind}_trainable.weight": trainable}
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, folder / "model.safetensors")
    assert_same(load(folder), whole)


def weights_of(weights: Weights, original: str) -> Tensor:
    return next(tensor for name, tensor in weights.items() if original_name(name) == f"{original}.weight")


def shard(folder: Path, parts: int) -> list[str]:
    """Splits a folder's weights into shards with an index, as the hub's large models are."""
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-{part + 1:05}-of-{parts:05}.safetensors" for part in range(parts)]
    index = {name: names[i % parts] for i, name in enumerate(sorted(weights))}
    for file in names:
        save_file({name: weights[name] for name in weights if index[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return names


def test_shards_are_the_same_model(tmp_path: Path) -> None:
    weights = tiny_weights(3)
    single = load(write_language_model(tmp_path / "single", weights))
    folder = write_language_model(tmp_path / "shards", weights)
    shard(folder, 3)
    assert_same(load(folder), single)


def test_the_stored_type_is_that_of_most_weights(tmp_path: Path) -> None:
    weights = {name: tensor.bfloat16() for name, tensor in tiny_weights(0).items()}
    weights["model.norm.weight"] = weights["model.norm.weight"].float()
    assert stored_dtype(write_language_model(tmp_path, weights)) == torch.bfloat16
    assert stored_dtype(write_language_model(tmp_path, tiny_weights(0))) == torch.float32


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_products_are_quantised_while_they_are_read(tmp_path: Path, stored: torch.dtype) -> None:
    """Row by row, wherever a tensor's rows stand in a fused one; nothing but the layers' products."""
    folder = write_language_model(tmp_path, {name: tensor.to(stored) for name, tensor in tiny_weights(4).items()})
    exact, int8 = load(folder), load_network(folder, CPU, torch.float32, int8=True)
    for name, weight in parameters(exact).items():
        kept = parameters(int8)[name]
        if name.startswith("layers.") and "norm" not in name:
            numbers, scales = quantize_rows(weight)
            assert torch.equal(kept, numbers), name
            assert torch.equal(int8.get_submodule(name.removesuffix(".weight")).scales, scales), name
        else:
            assert torch.equal(kept, weight), name
    assert weight_bytes(int8) < weight_bytes(exact)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_types_are_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: torch.dtype, wanted: torch.dtype
) -> None:
    monkeypatch.setattr(checkpoint, "_STAGING_BYTES", 1000)  # many pieces a tensor
    weights = {name: tensor.to(stored) for name, tensor in tiny_weights(4).items()}
    network = parameters(load(write_language_model(tmp_path, weights), wanted))
    for ours, theirs in (("head.weight", "audio_lm_head.weight"), ("norm.weight", "model.norm.weight")):
        assert network[ours].dtype == wanted
        assert torch.equal(network[ours], weights[theirs].to(wanted))


def test_the_text_head_and_training_leftovers_are_not_needed(tmp_path: Path) -> None:
    weights = tiny_weights(5)
    expected = load(write_language_model(tmp_path / "with", weights))
    del weights["text_lm_head.weight"]
    weights["model.rotary_emb.inv_freq"] = torch.ones(8)
    assert_same(load(write_language_model(tmp_path / "without", weights)), expected)


def test_progress_runs_from_nothing_to_one(tmp_path: Path) -> None:
    seen: list[float] = []
    load_network(write_language_model(tmp_path, tiny_weights(0)), CPU, torch.float32, lambda _, done: seen.append(done))
    assert seen == sorted(seen)
    assert 0 < seen[0] < 0.5
    assert seen[-1] == 1.0


def without(name: str) -> Callable[[Weights], Weights]:
    return lambda weights: {key: tensor for key, tensor in weights.items() if key != name}


def replaced(name: str, tensor: Tensor) -> Callable[[Weights], Weights]:
    return lambda weights: {**weights, name: tensor}


Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(Q), f"it lacks {re.escape(Q)}\\."),
        (lambda _: {"other.weight": torch.zeros(1)}, r"it lacks model\.embed_tokens\.weight and \d+ more"),
        (replaced("model.layers.3.input_layernorm.weight", torch.ones(64)), r"it holds model\.layers\.3.* besides"),
        (replaced(Q, torch.zeros(64, 32)), r"q_proj\.weight is \[64, 32\] where config\.json asks for \[64, 64\]"),
        (replaced(Q, torch.zeros(32, 64)), r"is \[32, 64\] where"),
        (replaced(Q, torch.zeros(())), r"is \[\] where"),
        (replaced("audio_lm_head.weight", torch.zeros(8 * 1024, 64)), r"\[8192, 64\] where .* \[8208, 64\]"),
        (replaced(Q, torch.zeros(64, 64, dtype=torch.int8)), "not stored as float32, bfloat16 or float16"),
    ],
)
def test_weights_that_do_not_fit_are_named_before_anything_is_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Weights], Weights], message: str
) -> None:
    folder = write_language_model(tmp_path, change(tiny_weights(0)))
    only_meta(monkeypatch)
    with pytest.raises(LoadError, match=message) as error:
        load(folder)
    assert str(folder) in str(error.value)
    assert str(folder) in error.value.zh


def only_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on a network with real weights is a failure."""

    def build(config: Any, device: torch.device, *how: Any, **kept: Any) -> HiggsNetwork:
        assert device.type == "meta"
        return HiggsNetwork(config, device, *how, **kept)

    monkeypatch.setattr(checkpoint, "HiggsNetwork", build)


def test_too_little_memory_is_told_in_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_language_model(tmp_path, tiny_weights(0))
    only_meta(monkeypatch)
    monkeypatch.setattr(checkpoint, "_free_bytes", lambda _: 1_000_000)
    with pytest.raises(LoadError, match=r"need 0\.0 GB on cpu and 0\.0 GB are free") as error:
        load(folder)
    assert error.value.code == "out_of_memory"
    monkeypatch.setattr(checkpoint, "_free_bytes", lambda _: 8_000_000_000)
    with pytest.raises(LoadError, match=r"need 11\.0 GB on cpu and 8\.0 GB are free"):
        checkpoint.check_memory(11_000_000_000, CPU)
    monkeypatch.setattr(checkpoint, "_free_bytes", lambda _: None)
    checkpoint.check_memory(10**18, CPU)


def test_a_gpu_that_is_too_small_is_shown_the_smaller_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_free_bytes", lambda _: 8_000_000_000)
    with pytest.raises(LoadError, match=r"on cuda and 8\.0 GB are free: .*--quantization int8") as error:
        checkpoint.check_memory(11_000_000_000, torch.device("cuda"))
    assert "--quantization int8" in error.value.zh


def test_memory_that_is_refused_after_all_is_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of this process (ulimit -v) shows in no figure of the machine's."""

    def build(config: Any, device: torch.device, *how: Any, **kept: Any) -> HiggsNetwork:
        if device.type != "meta":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return HiggsNetwork(config, device, *how, **kept)

    monkeypatch.setattr(checkpoint, "HiggsNetwork", build)
    with pytest.raises(LoadError, match=r"need 0\.0 GB on cpu and less is free") as error:
        load(write_language_model(tmp_path, tiny_weights(0)))
    assert error.value.code == "out_of_memory"


def test_free_memory_is_a_sensible_number() -> None:
    free = checkpoint._free_bytes(CPU)
    assert free is None or 1_000_000 < free < 10**15


def with_offsets(file: bytes, name: str, begin: int, end: int) -> bytes:
    """The same safetensors file, its header saying that a tensor is elsewhere."""
    (length,) = struct.unpack("<Q", file[:8])
    header = json.loads(file[8 : 8 + length])
    header[name]["data_offsets"] = [begin, end]
    changed = json.dumps(header).encode()
    return struct.pack("<Q", len(changed)) + changed + file[8 + length :]


def test_damaged_files(tmp_path: Path) -> None:
    folder = write_language_model(tmp_path, tiny_weights(0))
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for damaged in (
        b"",
        b"short",
        whole[:1000],
        whole[:-1],
        struct.pack("<Q", 1 << 60) + whole[8:],
        struct.pack("<Q", 4) + b"nope",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 9) + b'{"a": {}}',
        with_offsets(whole, "model.norm.weight", -256, 0),
    ):
        file.write_bytes(damaged)
        with pytest.raises(LoadError, match="damaged or incomplete"):
            load(folder)
    file.unlink()
    torch.save(tiny_weights(0), folder / "pytorch_model.bin")  # a pickle: left alone
    with pytest.raises(LoadError, match=r"lacks the weights file model\.safetensors"):
        load(folder)


def test_damaged_indexes(tmp_path: Path) -> None:
    folder = write_language_model(tmp_path, tiny_weights(0))
    names = shard(folder, 2)
    index = folder / "model.safetensors.index.json"
    outside = {"weight_map": {"a": "../model.safetensors"}}
    for content, message in (
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"weight_map": 3}', "damaged"),
        ('{"weight_map": {"a": 3}}', "damaged"),
        (json.dumps(outside), "lacks"),
    ):
        kept = index.read_text()
        index.write_text(content)
        with pytest.raises(LoadError, match=message):
            load(folder)
        index.write_text(kept)
    (folder / names[1]).unlink()
    with pytest.raises(LoadError, match=f"lacks the weights file {names[1]}"):
        load(folder)
