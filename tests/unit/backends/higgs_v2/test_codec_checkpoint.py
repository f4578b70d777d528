from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from higgs_server.backends.higgs_v2.codec import HiggsCodec, load_codec
from higgs_server.backends.higgs_v2.codec_original import native_name
from higgs_server.engine.codec_stream import CodecWorker, decode_whole
from higgs_server.engine.interface import Codec
from higgs_server.types import LoadError
from tiny_codec import write_tiny_codec


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("codec")
    return {layout: write_tiny_codec(root / layout, layout, seed=5) for layout in ("native", "original")}


@pytest.fixture(scope="module")
def codec(folders: dict[str, Path]) -> HiggsCodec:
    return load_codec(folders["native"])


def change_native(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def change_original(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = torch.load(folder / "model.pth", weights_only=True)
    change(weights)
    torch.save(weights, folder / "model.pth")


def refusal(folder: Path) -> str:
    with pytest.raises(LoadError) as caught:
        load_codec(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    assert caught.value.zh != message
    return message


@pytest.fixture
def native(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["native"], tmp_path / "native"))


@pytest.fixture
def original(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["original"], tmp_path / "original"))


# --- both layouts ---------------------------------------------------------------------------------------------------


def test_both_layouts_hold_the_same_codec(folders: dict[str, Path], codec: HiggsCodec) -> None:
    other = load_codec(folders["original"])
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 1024, (1, 20, 8))
    samples = rng.normal(0, 0.1, 30_000).astype(np.float32)
    np.testing.assert_allclose(other.decode(codes), codec.decode(codes), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(other.encode(samples), codec.encode(samples))


def test_it_is_what_the_engine_asks_for(codec: HiggsCodec) -> None:
    seam: Codec = codec
    facts = (seam.sampling_rate, seam.hop_length, seam.num_codebooks, seam.context_frames)
    assert facts == (24_000, 960, 8, 10)


# Names of the published original, which no other code of ours produces: a guard against one mistake made twice.
@pytest.mark.parametrize(
    ("original_name", "native"),
    [
        ("encoder.block.0.weight", "acoustic_encoder.conv1.weight"),
        ("encoder.block.1.block.0.block.0.alpha", "acoustic_encoder.block.0.res_unit1.snake1.alpha"),
        ("encoder.block.5.block.2.block.3.bias", "acoustic_encoder.block.4.res_unit3.conv2.bias"),
        ("encoder.block.3.block.4.weight", "acoustic_encoder.block.2.conv1.weight"),
        ("encoder.block.6.alpha", "acoustic_encoder.snake1.alpha"),
        ("encoder.block.7.weight", "acoustic_encoder.conv2.weight"),
        ("decoder_2.model.0.bias", "acoustic_decoder.conv1.bias"),
        ("decoder_2.model.1.block.1.weight", "acoustic_decoder.block.0.conv_t1.weight"),
        ("decoder_2.model.5.block.4.block.1.weight", "acoustic_decoder.block.4.res_unit3.conv1.weight"),
        ("decoder_2.model.2.block.0.alpha", "acoustic_decoder.block.1.snake1.alpha"),
        ("decoder_2.model.7.bias", "acoustic_decoder.conv2.bias"),
        ("quantizer.vq.layers.3._codebook.embed", "quantizer.quantizers.3.codebook.embed"),
        ("quantizer.vq.layers.0.project_in.weight", "quantizer.quantizers.0.project_in.weight"),
        ("fc_prior.weight", "fc.weight"),
        ("fc_post2.bias", "fc2.bias"),
        ("encoder_semantic.conv.conv.weight", "encoder_semantic.conv.weight"),
        (
            "encoder_semantic.conv_blocks.1.res_units.0.conv1.conv.weight",
            "encoder_semantic.conv_blocks.1.res_units.0.conv1.weight",
        ),
        (
            "encoder_semantic.conv_blocks.1.res_units.0.conv2.weight",
            "encoder_semantic.conv_blocks.1.res_units.0.conv2.weight",
        ),
        ("semantic_model.encoder.layers.0.attention.k_proj.weight",) * 2,
    ],
)
def test_original_names(original_name: str, native: str) -> None:
    assert native_name(original_name, blocks=5) == native


def test_an_older_pickle_and_older_weight_norm_names_load(original: Path, codec: HiggsCodec) -> None:
    weights = torch.load(original / "model.pth", weights_only=True)
    root = "semantic_model.encoder.pos_conv_embed.conv"
    weights[f"{root}.weight_g"] = weights.pop(f"{root}.parametrizations.weight.original0")
    weights[f"{root}.weight_v"] = weights.pop(f"{root}.parametrizations.weight.original1")
    torch.save(weights, original / "model.pth", _use_new_zipfile_serialization=False)
    samples = np.random.default_rng(1).normal(0, 0.1, 9_600).astype(np.float32)
    np.testing.assert_array_equal(load_codec(original).encode(samples), codec.encode(samples))


def test_half_precision_files_are_computed_in_float32(native: Path) -> None:
    change_native(native, lambda weights: weights.update({name: w.bfloat16() for name, w in weights.items()}))
    assert load_codec(native).decode(np.zeros((1, 2, 8), np.int64)).dtype == np.float32


# --- speaking alone -------------------------------------------------------------------------------------------------


def test_speaking_reads_the_decoder_only(native: Path) -> None:
    codec = load_codec(native)
    assert all(parameter.device.type == "meta" for parameter in codec._encoder.parameters())
    codec.decode(np.zeros((1, 3, 8), np.int64))
    assert all(parameter.device.type == "meta" for parameter in codec._encoder.parameters())
    assert codec.encode(np.zeros(960, np.float32)).shape == (1, 8)
    assert all(parameter.device.type == "cpu" for parameter in codec._encoder.parameters())


def test_the_file_may_change_once_it_is_read(native: Path) -> None:
    codec = load_codec(native)
    codes = np.ones((1, 3, 8), np.int64)
    before = codec.decode(codes)
    with (native / "model.safetensors").open("r+b") as file:
        file.seek(0)
        file.write(b"\0" * (native / "model.safetensors").stat().st_size)
    np.testing.assert_array_equal(codec.decode(codes), before)


@pytest.mark.parametrize(
    "codes", [np.full((1, 2, 8), 1024), np.full((1, 2, 8), -1), np.zeros((2, 8)), np.zeros((1, 2, 7))]
)
def test_codes_that_no_codebook_has_are_refused(codec: HiggsCodec, codes: np.ndarray) -> None:
    with pytest.raises(ValueError, match="codes must be"):
        codec.decode(codes)


# --- streaming through the network ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "largest", "step", "n"), [(1, 7, 1, 40), (4, 4, 3, 33), (2, 32, 50, 70), (5, 9, 1, 3)]
)
def test_streamed_samples_equal_the_whole_decode(
    codec: HiggsCodec, first: int, largest: int, step: int, n: int
) -> None:
    codes = np.random.default_rng(n).integers(0, 1024, (n, 8))
    worker = CodecWorker(codec, first=first, largest=largest)
    streams = [worker.open() for _ in range(2)]
    for start in range(0, n, step):
        for stream in streams:
            stream.push(codes[start : start + step])
    for stream in streams:
        stream.finish()
    whole = decode_whole(codec, codes)
    assert whole.shape == (n * 960,)
    for stream in streams:
        np.testing.assert_allclose(np.concatenate(list(stream)), whole, rtol=0, atol=1e-4)
    worker.close()


def test_less_context_than_the_codec_asks_for_is_heard(codec: HiggsCodec) -> None:
    codes = np.random.default_rng(0).integers(0, 1024, (40, 8))
    whole = codec.decode(codes[None])[0][20 * 960 : 21 * 960]

    def error(context: int) -> float:
        window = codec.decode(codes[None, 20 - context : 21 + context])[0]
        return float(np.abs(window[context * 960 : (context + 1) * 960] - whole).max())

    assert error(codec.context_frames - 1) > 1e-4
    assert error(codec.context_frames) < 1e-5


# --- what is refused ------------------------------------------------------------------------------------------------


def test_an_empty_folder(tmp_path: Path) -> None:
    assert "config.json" in refusal(tmp_path)


def test_a_language_models_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "higgs_audio_v2"}')
    assert "holds no Higgs Audio v2 codec (model type higgs_audio_v2)" in refusal(tmp_path)


def test_a_config_without_weights(native: Path) -> None:
    (native / "model.safetensors").unlink()
    assert "no model.safetensors" in refusal(native)


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_config_that_is_no_object(native: Path, content: str) -> None:
    (native / "config.json").write_text(content)
    assert "config.json" in refusal(native)


@pytest.mark.parametrize(
    ("layout", "key", "value"),
    [
        ("native", "codebook_size", "many"),
        ("native", "sample_rate", 16_000),
        ("native", "semantic_model_config", {"model_type": "hubert", "hidden_size": 64, "num_attention_heads": 7}),
        ("native", "strides", [1, 1, 1]),
        ("original", "ratios", "8 5 4 2 3"),
        ("original", "bins", [8, 8, 8]),
        ("original", "semantic_techer", "wavlm_base_plus"),
        ("original", "sample_rate", 16_000),
    ],
)
def test_a_config_of_something_else(
    folders: dict[str, Path], tmp_path: Path, layout: str, key: str, value: object
) -> None:
    folder = Path(shutil.copytree(folders[layout], tmp_path / layout))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    assert "config.json" in refusal(folder) or key == "sample_rate"


@pytest.mark.parametrize(
    "name",
    [
        "acoustic_decoder.block.2.conv_t1.weight",
        "quantizer.quantizers.7.codebook.embed",
        "acoustic_encoder.conv1.bias",
        "semantic_model.encoder.layers.1.attention.q_proj.weight",
        "semantic_model.encoder.pos_conv_embed.conv.parametrizations.weight.original1",
        "fc.weight",
    ],
)
def test_a_missing_weight(native: Path, name: str) -> None:
    change_native(native, lambda weights: weights.pop(name))
    assert f"lacks {name}" in refusal(native)


def test_the_wrong_weights_altogether(native: Path) -> None:
    save_file({"encoder.layers.0.weight": torch.zeros(3)}, native / "model.safetensors")
    assert "lacks acoustic_decoder.block.0.conv_t1.bias (+" in refusal(native)


def test_a_weight_too_many(native: Path) -> None:
    change_native(native, lambda weights: weights.update({"quantizer.quantizers.8.project_in.bias": torch.zeros(16)}))
    assert "holds quantizer.quantizers.8.project_in.bias besides" in refusal(native)


def test_a_misshapen_weight(native: Path) -> None:
    change_native(native, lambda weights: weights.update({"fc2.weight": torch.zeros(32, 95)}))
    assert "fc2.weight is [32, 95] instead of [32, 96]" in refusal(native)


def test_a_truncated_file(native: Path) -> None:
    file = native / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100_000])
    assert "cannot be read as weights" in refusal(native)


def test_original_missing_extra_and_misshapen(original: Path, tmp_path: Path) -> None:
    def variant(change: Callable[[dict[str, torch.Tensor]], Any]) -> str:
        folder = Path(shutil.copytree(original, tmp_path / "variant", dirs_exist_ok=True))
        change_original(folder, change)
        return refusal(folder)

    assert "lacks decoder_2.model.0.weight_v" in variant(lambda weights: weights.pop("decoder_2.model.0.weight_v"))
    assert "lacks fc.bias" in variant(lambda weights: weights.pop("fc_prior.bias"))
    assert "holds decoder_2.model.9.alpha" in variant(
        lambda weights: weights.update({"decoder_2.model.9.alpha": torch.ones(1)})
    )
    assert "does not fit" in variant(
        lambda weights: weights.update({"decoder_2.model.0.weight_g": torch.ones(3, 1, 1)})
    )


class Exploit:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.victim,))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_not_run(original: Path, tmp_path: Path, zipped: bool) -> None:
    payload = {"encoder.block.0.bias": Exploit(tmp_path / "victim")}
    torch.save(payload, original / "model.pth", _use_new_zipfile_serialization=zipped)
    assert "could run code" in refusal(original)
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", pickle.dumps({"a": [1]}, protocol=2)])
def test_a_file_that_is_no_checkpoint(original: Path, content: bytes) -> None:
    (original / "model.pth").write_bytes(content)
    assert "model.pth" in refusal(original)


def test_a_zip_that_is_no_checkpoint(original: Path) -> None:
    with zipfile.ZipFile(original / "model.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "model.pth" in refusal(original)


def test_tensors_that_are_not_in_a_dictionary(original: Path) -> None:
    torch.save([torch.zeros(2)], original / "model.pth")
    assert "not a dictionary of tensors" in refusal(original)
