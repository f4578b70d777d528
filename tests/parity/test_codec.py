"""Our codec against transformers' HiggsAudioV2TokenizerModel, on the same random checkpoint."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soxr
import torch

from higgs_server.backends.higgs_v2.codec import HiggsCodec, load_codec
from higgs_server.backends.higgs_v2.codec_network import AcousticDecoder, Upsampling
from higgs_server.backends.higgs_v2.codec_semantic import resample
from tiny_codec import write_tiny_codec

REFERENCE = "transformers.models.higgs_audio_v2_tokenizer.modeling_higgs_audio_v2_tokenizer"
HOP = 960


def slow_resample(samples: torch.Tensor, old: int, new: int) -> torch.Tensor:
    """The windowed sinc by its definition, in float64: an output sample is a sum over the input samples near it."""
    signal = samples.double().numpy()
    cutoff = 0.99 * min(old, new) / old  # zero crossings an input sample
    reach = math.ceil(6 / cutoff)
    padded = np.pad(signal, [(0, 0)] * (signal.ndim - 1) + [(reach, reach + 1)])
    centre = np.arange(math.ceil(signal.shape[-1] * new / old))[:, None] * old / new  # in input samples
    near = np.floor(centre).astype(int) + np.arange(-reach, reach + 1)
    phase = (centre - near) * cutoff
    weights = np.where(np.abs(phase) < 6, np.sinc(phase) * np.cos(phase * np.pi / 12) ** 2, 0.0) * cutoff
    output = (padded[..., near + reach] * weights).sum(axis=-1)
    return torch.from_numpy(output).to(samples.dtype)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_codec(tmp_path_factory.mktemp("codec") / "native", seed=3)


@pytest.fixture(scope="module")
def codec(folder: Path) -> HiggsCodec:
    return load_codec(folder)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Iterator[Any]:
    """transformers' class needs a module named torchaudio for one call; it finds ours while it is imported."""
    stand_in = ModuleType("torchaudio")
    stand_in.__spec__ = ModuleSpec("torchaudio", None)
    stand_in.functional = ModuleType("torchaudio.functional")  # type: ignore[attr-defined]
    stand_in.functional.resample = slow_resample  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchaudio", stand_in)
        patch.delitem(sys.modules, REFERENCE, raising=False)
        module = importlib.import_module(REFERENCE)
    yield module.HiggsAudioV2TokenizerModel.from_pretrained(folder, local_files_only=True).eval()
    sys.modules.pop(REFERENCE, None)


def noise(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    tone = 0.2 * np.sin(2 * np.pi * rng.uniform(80, 2000) * np.arange(n) / 24_000)
    return (tone + 0.05 * rng.standard_normal(n)).astype(np.float32)


LENGTHS = [119, 120, 500, 959, 960, 961, 1439, 1440, 1441, 1919, 1920, 5 * HOP + 7, 24_000, 37_123, 50_399]


@pytest.mark.parametrize("n", LENGTHS)
def test_encode_gives_the_reference_codes(codec: HiggsCodec, reference: Any, n: int) -> None:
    samples = noise(n, seed=n)
    with torch.inference_mode():
        expected = reference.encode(torch.from_numpy(samples)[None, None]).audio_codes[0].t().numpy()
    codes = codec.encode(samples)
    assert codes.dtype == np.int64
    np.testing.assert_array_equal(codes, expected)


@pytest.mark.parametrize("frames", [1, 2, 7, 24, 75])
def test_decode_gives_the_reference_samples(codec: HiggsCodec, reference: Any, frames: int) -> None:
    codes = np.random.default_rng(frames).integers(0, 1024, (3, frames, 8))
    with torch.inference_mode():
        expected = reference.decode(torch.from_numpy(codes).transpose(1, 2)).audio_values[:, 0].numpy()
    samples = codec.decode(codes)
    assert samples.shape == (3, frames * HOP)
    assert samples.dtype == np.float32
    assert np.sqrt(np.mean(samples**2)) > 0.03  # real sound, so that the tolerance means something
    np.testing.assert_allclose(samples, expected, rtol=0, atol=1e-5)


def test_the_codes_follow_the_sound(codec: HiggsCodec) -> None:
    one, other = codec.encode(noise(24_000, seed=1)), codec.encode(noise(24_000, seed=2))
    assert np.mean(one != other) > 0.5
    assert all(len(np.unique(one[:, k])) > 5 for k in range(8))


@pytest.mark.parametrize("n", [1, 2, 118])
def test_a_clip_too_short_for_the_reference_is_one_frame(codec: HiggsCodec, n: int) -> None:
    assert codec.encode(noise(n)).shape == (1, 8)


def test_no_samples_no_frames(codec: HiggsCodec) -> None:
    assert codec.encode(np.zeros(0, np.float32)).shape == (0, 8)
    assert codec.decode(np.zeros((1, 0, 8), np.int64)).shape == (1, 0)


def test_batches_are_as_good_as_single_decodes(codec: HiggsCodec) -> None:
    codes = np.random.default_rng(0).integers(0, 1024, (4, 30, 8))
    alone = np.concatenate([codec.decode(row[None]) for row in codes])
    np.testing.assert_allclose(codec.decode(codes), alone, rtol=0, atol=1e-5)


def test_the_receptive_field_is_what_context_frames_says(codec: HiggsCodec) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 1024, (1, 41, 8))
    changed = codes.copy()
    changed[:, 20] = (changed[:, 20] + 1) % 1024
    moved = np.abs(codec.decode(codes) - codec.decode(changed))[0].reshape(41, HOP).max(axis=1) > 1e-6
    assert list(np.flatnonzero(moved)) == list(range(10, 31))
    assert codec.context_frames == 10


def random_decoder(ratios: Sequence[int]) -> AcousticDecoder:
    decoder = AcousticDecoder(8 << len(ratios), ratios, 4).double().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in decoder.named_parameters():
        if name.endswith("alpha"):
            parameter.fill_(1)
        else:
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
    return decoder


@pytest.mark.parametrize(
    ("ratios", "left", "right"),
    [([8, 5, 4, 2, 3], 10, 10), ([8, 5, 4, 2], 10, 10), ([2, 3], 31, 31), ([5, 3, 3], 15, 16), ([7, 7, 7], 10, 11)],
)
def test_context_frames_are_those_that_a_sample_hears(ratios: list[int], left: int, right: int) -> None:
    decoder = random_decoder(ratios)
    features = torch.zeros(1, 4, 81, dtype=torch.float64)
    features[..., 40] = torch.nan  # whatever hears it is no number either
    hears_it = np.flatnonzero(decoder(features).isnan().view(81, -1).any(-1))
    assert hears_it.tolist() == list(range(40 - right, 40 + left + 1))
    assert decoder.context_frames == max(left, right)


@pytest.mark.parametrize("ratios", [[8, 5, 4, 2, 3], [8, 5, 4, 2], [5, 3, 3]])
def test_no_layer_is_given_a_neighbour_too_many_or_too_few(ratios: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = random_decoder(ratios)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(1, 4, 41, dtype=torch.float64, generator=generator)
    hop = math.prod(ratios)
    wanted = decoder(features)[..., 20 * hop : 21 * hop]

    def error(context: int) -> float:
        window = features[..., 20 - context : 21 + context]
        return float((decoder(window, context, context) - wanted).abs().max())

    # Of values up to 470, rounding is 3e-11 (how sums are cut differs between processors), the least neighbour 4e-4.
    context, reaches = decoder.context_frames, decoder._reaches()
    assert error(context) < 1e-9
    assert error(context - 1) > 1e-5
    for layer in range(len(reaches)):
        fewer = [reach - (n == layer) for n, reach in enumerate(reaches)]
        monkeypatch.setattr(decoder, "_reaches", lambda fewer=fewer: fewer)
        assert error(context) > 1e-5, layer


@pytest.mark.parametrize(("left", "right"), [(0, 0), (0, 10), (2, 10), (7, 3), (10, 10), (15, 24), (40, 1), (20, 21)])
def test_frames_of_context_are_heard_by_the_others_only(codec: HiggsCodec, left: int, right: int) -> None:
    codes = np.random.default_rng(0).integers(0, 1024, (2, 41, 8))
    wanted = codec.decode(codes)[:, left * HOP : (41 - right) * HOP]
    np.testing.assert_allclose(codec.decode(codes, left, right), wanted, rtol=0, atol=1e-5)


def test_context_goes_no_further_into_the_network_than_it_is_heard(codec: HiggsCodec) -> None:
    lengths = []
    decoder = codec._decoder.acoustic_decoder
    layers = [*(block.res_unit1 for block in decoder.block), decoder.conv2]
    hooks = [layer.register_forward_pre_hook(lambda _, x: lengths.append(x[0].shape[-1])) for layer in layers]
    codec.decode(np.zeros((1, 32, 8), np.int64), 11, 11)
    for hook in hooks:
        hook.remove()
    frames = np.array(lengths) / [8, 40, 160, 320, HOP, HOP]
    np.testing.assert_allclose(frames, [24, 13, 10.9, 10.35, 10.1, 10], atol=0.01)  # of 32, 10 are wanted


@pytest.mark.parametrize(("left", "right"), [(6, 5), (-1, 0), (0, -1)])
def test_context_that_is_not_there(codec: HiggsCodec, left: int, right: int) -> None:
    with pytest.raises(ValueError, match="10 frames"):
        codec.decode(np.zeros((1, 10, 8), np.int64), left, right)


@pytest.mark.parametrize("stride", [2, 3, 4, 5, 8])
def test_upsampling_is_the_transposed_convolution(stride: int) -> None:
    generator = torch.Generator().manual_seed(stride)
    upsampling = Upsampling(6, stride).requires_grad_(False)
    for parameter in upsampling.parameters():
        parameter.normal_(generator=generator)
    for n in (1, 2, 17):
        x = torch.randn(3, 6, n, generator=generator)
        expected = torch.nn.ConvTranspose1d.forward(upsampling, x)
        assert expected.shape == (3, 3, n * stride)
        torch.testing.assert_close(upsampling(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3, 1000, 4801])
def test_resampling_is_the_formula(n: int) -> None:
    samples = torch.from_numpy(np.stack([noise(n), noise(n, seed=1)]))
    torch.testing.assert_close(
        resample(samples, 24_000, 16_000), slow_resample(samples, 24_000, 16_000), rtol=0, atol=1e-6
    )


def test_resampling_agrees_with_a_good_resampler() -> None:
    time = np.arange(24_000) / 24_000
    samples = (0.3 * np.sin(2 * np.pi * 440 * time) + 0.2 * np.sin(2 * np.pi * 3000 * time)).astype(np.float32)
    ours = resample(torch.from_numpy(samples)[None], 24_000, 16_000)[0].numpy()
    theirs = soxr.resample(samples, 24_000, 16_000, quality="VHQ")
    middle = slice(500, -500)
    assert np.abs(ours[middle] - theirs[middle]).max() < 3e-3
    alias = np.sin(2 * np.pi * 11_000 * time).astype(np.float32)
    assert np.abs(resample(torch.from_numpy(alias)[None], 24_000, 16_000)[0].numpy()[middle]).max() < 1e-2


def test_the_stand_in_for_torchaudio_is_gone(reference: Any) -> None:
    assert "torchaudio" not in sys.modules
    from transformers import HiggsAudioV2ForConditionalGeneration, HubertModel
    from transformers.utils import is_torchaudio_available

    assert not is_torchaudio_available()
    assert HubertModel.__module__.startswith("transformers.models.hubert")
    assert HiggsAudioV2ForConditionalGeneration.__module__.startswith("transformers.models.higgs_audio_v2")
