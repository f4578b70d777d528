"""A tiny random codec with the real one's structure, as a folder in either published layout.

Eight codebooks of 1024, hop 960, a HuBERT of two layers. Weights are scaled so that distance matters: a frame is heard
almost as far away as the network can reach, so a window with too little context comes out wrong. Random codes decode
to noise of rms 0.1.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import HiggsAudioV2TokenizerConfig

from higgs_server.backends.higgs_v2.codec_network import CodecDecoder
from higgs_server.backends.higgs_v2.codec_semantic import CodecEncoder

RATIOS = [8, 5, 4, 2, 3]
RMS = 0.1
POSITION = "semantic_model.encoder.pos_conv_embed.conv"


def tiny_config() -> HiggsAudioV2TokenizerConfig:
    return HiggsAudioV2TokenizerConfig(
        acoustic_model_config={
            "model_type": "dac",
            "encoder_hidden_size": 4,
            "decoder_hidden_size": 64,
            "hidden_size": 32,
            "downsampling_ratios": RATIOS,
            "upsampling_ratios": RATIOS,
        },
        semantic_model_config={
            "model_type": "hubert",
            "hidden_size": 64,
            "num_attention_heads": 1,
            "num_hidden_layers": 2,
            "intermediate_size": 96,
            "conv_dim": [16] * 7,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
        },
        codebook_dim=16,
        target_bandwidths=[0.5, 1, 1.5, 2],
    )


def write_tiny_codec(
    folder: Path,
    layout: Literal["native", "original"] = "native",
    seed: int = 0,
    config: HiggsAudioV2TokenizerConfig | None = None,
) -> Path:
    """Writes config and weights into `folder`. One seed, one set of weights: both layouts hold the same codec.

    `config`: another codec's, for the native layout.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = config or tiny_config()
    generator = torch.Generator().manual_seed(seed)
    weights = _random_weights(config, generator)
    if layout == "native":
        config.save_pretrained(folder)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        settings = {
            "n_filters": 32,
            "D": 32,
            "codebook_dim": 16,
            "target_bandwidths": [0.5, 1, 1.5, 2, 4],
            "ratios": RATIOS,
            "sample_rate": 24000,
            "bins": 1024,
            "n_q": 8,
            "semantic_techer": "hubert_base_general",
        }
        (folder / "config.json").write_text(json.dumps(settings))
        torch.save(_original(weights, generator), folder / "model.pth")
    return folder


def _random_weights(config: HiggsAudioV2TokenizerConfig, generator: torch.Generator) -> dict[str, Tensor]:
    """All that HiggsAudioV2TokenizerModel.save_pretrained writes, the parts only training uses included."""
    with torch.device("meta"):
        decoder, encoder = CodecDecoder(config), CodecEncoder(config)
    weights = {}
    for network in (decoder, encoder):
        for name, tensor in network.state_dict().items():
            weights[name] = _random(name, tensor.shape, generator)
    for quantizer in range(config.num_quantizers):
        _make_residual(weights, f"quantizer.quantizers.{quantizer}", 0.8**quantizer, generator)
    _level(decoder, weights, generator)
    return weights | _training_only(weights, generator) | _split(weights, POSITION, axis=2, generator=generator)


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if name.endswith("alpha"):
        return 1 + 0.3 * noise.clamp(-2, 2)
    if "norm" in name:
        return 1 + 0.1 * noise if name.endswith("weight") else 0.1 * noise
    if len(shape) == 1:
        return 0.05 * noise
    inputs = 2 * shape[0] if "conv_t1" in name else math.prod(shape[1:])
    return noise * _gain(name) / math.sqrt(inputs)


def _gain(name: str) -> float:
    # The decoder's first block reaches furthest, so its residual branches weigh as much as what they are added to.
    # The other branches are weak: strong ones would amplify rounding from layer to layer, as no trained codec does.
    if match := re.match(r"acoustic_\w+\.block\.(\d)\.res_unit\d\.conv2", name):
        return 1.0 if match[1] == "0" else 0.3
    if re.match(r"acoustic_\w+\.block\.\d\.conv(_t)?1\.", name):
        return 0.5
    return 10.0 if name == "acoustic_encoder.conv1.weight" else 1.0


def _make_residual(weights: dict[str, Tensor], root: str, scale: float, generator: torch.Generator) -> None:
    """Projections that undo each other, so that each quantizer really leaves the next one a residual."""
    basis = torch.linalg.qr(torch.randn(weights[f"{root}.project_out.weight"].shape, generator=generator))[0]
    weights[f"{root}.project_out.weight"] = basis.contiguous()
    weights[f"{root}.project_in.weight"] = basis.t().contiguous()
    codebook = f"{root}.codebook.embed"
    weights[codebook] = scale * torch.randn(weights[codebook].shape, generator=generator)


def _level(decoder: nn.Module, weights: dict[str, Tensor], generator: torch.Generator) -> None:
    decoder.load_state_dict({name: weights[name] for name in decoder.state_dict()}, assign=True)
    with torch.inference_mode():
        rms = decoder(torch.randint(1024, (1, 50, 8), generator=generator)).square().mean().sqrt()
    for name in ("acoustic_decoder.conv2.weight", "acoustic_decoder.conv2.bias"):
        weights[name] = weights[name] * (RMS / float(rms))


def _training_only(weights: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    fc, semantic = weights["fc.weight"].shape[0], weights["encoder_semantic.conv.weight"].shape[0]
    shapes = {
        "fc1.weight": (semantic, fc),
        "fc1.bias": (semantic,),
        "semantic_model.masked_spec_embed": (semantic,),
        "decoder_semantic.conv1.weight": (semantic, semantic, 3),
        "decoder_semantic.conv2.weight": (semantic, semantic, 3),
    }
    for block in range(2):
        root = f"decoder_semantic.conv_blocks.{block}"
        shapes |= {f"{root}.conv.weight": (semantic, semantic, 3), f"{root}.conv.bias": (semantic,)}
        for unit in range(2):
            shapes[f"{root}.res_units.{unit}.conv1.weight"] = (semantic, semantic, 3)
            shapes[f"{root}.res_units.{unit}.conv2.weight"] = (semantic, semantic, 1)
    extra = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name, embed in weights.items():
        if name.endswith("codebook.embed"):
            root = name.removesuffix("embed")
            extra |= {f"{root}embed_avg": embed.clone(), f"{root}inited": torch.ones(1)}
            extra[f"{root}cluster_size"] = torch.ones(embed.shape[0])
    return extra


def _split(weights: dict[str, Tensor], layer: str, axis: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Takes a layer's weight out of `weights` and returns it as weight norm stores it: magnitude and direction."""
    weight = weights.pop(f"{layer}.weight")
    others = [other for other in range(weight.ndim) if other != axis]
    magnitude = torch.linalg.vector_norm(weight, dim=others, keepdim=True)
    direction = weight * (0.5 + torch.rand(magnitude.shape, generator=generator))
    root = f"{layer}.parametrizations.weight"
    return {f"{root}.original0": magnitude, f"{root}.original1": direction}


def _original(weights: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """The same tensors by boson_multimodal's names, with DAC's weight norm."""
    original = {_original_name(name): tensor for name, tensor in weights.items()}
    for name in [name for name in original if re.match(r"(encoder|decoder_2)\..*\.weight$", name)]:
        for key, tensor in _split(original, name.removesuffix(".weight"), axis=0, generator=generator).items():
            root, number = key.split(".parametrizations.weight.original")
            original[f"{root}.weight_{'gv'[int(number)]}"] = tensor
    return original


def _original_name(name: str) -> str:
    unit = {"snake1": 0, "conv1": 1, "snake2": 2, "conv2": 3}
    for part, root, first_unit, inner in (
        ("acoustic_encoder", "encoder.block", 0, {"snake1": 3, "conv1": 4}),
        ("acoustic_decoder", "decoder_2.model", 2, {"snake1": 0, "conv_t1": 1}),
    ):
        if match := re.match(rf"{part}\.block\.(\d)\.res_unit(\d)\.(\w+)", name):
            block, number = int(match[1]) + 1, int(match[2]) - 1 + first_unit
            return f"{root}.{block}.block.{number}.block.{unit[match[3]]}" + name[match.end() :]
        if match := re.match(rf"{part}\.block\.(\d)\.(\w+)", name):
            return f"{root}.{int(match[1]) + 1}.block.{inner[match[2]]}" + name[match.end() :]
        for layer, number in (("conv1", 0), ("snake1", 6), ("conv2", 7)):
            name = name.replace(f"{part}.{layer}", f"{root}.{number}")
    if name.startswith(("encoder_semantic.", "decoder_semantic.")):
        # Wrapped convolutions, but for the units' second ones, which are plain.
        return re.sub(
            r"(conv_blocks\.\d\.conv|semantic\.conv[12]?|units\.\d\.conv1)\.(?=weight|bias)", r"\1.conv.", name
        )
    for native, old in (("fc.", "fc_prior."), ("fc1.", "fc_post1."), ("fc2.", "fc_post2.")):
        if name.startswith(native):
            return old + name.removeprefix(native)
    return name.replace("quantizer.quantizers.", "quantizer.vq.layers.").replace(".codebook.", "._codebook.")
