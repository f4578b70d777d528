"""The codec's original layout in the native one's words: tensor names and config.

boson_multimodal's HiggsAudioTokenizer, built on X-Codec and DAC. Knows names and shapes; reads no file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from higgs_server.types import LoadError

_ACOUSTIC = re.compile(r"(encoder\.block|decoder_2\.model)\.(\d+)(?:\.block\.(\d+))?(?:\.block\.(\d+))?\.(\w+)")
_RESIDUAL_UNITS = ("res_unit1", "res_unit2", "res_unit3")
_ACOUSTIC_PARTS = {
    "encoder.block": ("acoustic_encoder", (*_RESIDUAL_UNITS, "snake1", "conv1")),
    "decoder_2.model": ("acoustic_decoder", ("snake1", "conv_t1", *_RESIDUAL_UNITS)),
}


def native_name(name: str, blocks: int) -> str:
    """The native name of an original tensor; a name that follows no rule stays as it is."""
    if match := _ACOUSTIC.fullmatch(name):
        # DAC numbers its layers: first convolution, blocks, snake, last convolution; and so on within them.
        part, layers = _ACOUSTIC_PARTS[match[1]]
        outer = ("conv1", *(f"block.{i}" for i in range(blocks)), "snake1", "conv2")
        tables = (outer, layers, ("snake1", "conv1", "snake2", "conv2"))
        numbers = [int(number) for number in match.group(2, 3, 4) if number]
        if all(number < len(table) for number, table in zip(numbers, tables, strict=False)):
            path = (table[number] for number, table in zip(numbers, tables, strict=False))
            return ".".join((part, *path, match[5]))
    if name.startswith("encoder_semantic."):
        return re.sub(r"\.(conv[12]?)\.conv\.", r".\1.", name)
    for old, new in (
        ("quantizer.vq.layers.", "quantizer.quantizers."),
        ("fc_prior.", "fc."),
        ("fc_post2.", "fc2."),
    ):
        if name.startswith(old):
            return new + name.removeprefix(old).replace("._codebook.", ".codebook.")
    return name


def native_settings(folder: Path, settings: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """What the original's config.json says, in the words of the native one.

    It leaves widths to the code, so they are taken from the weights. Raises LoadError for variants of the original
    that Higgs Audio v2 is not.
    """
    variants = {
        "bins": isinstance(settings.get("bins", 1024), int),
        "vq_scale": settings.get("vq_scale", 1) == 1,
        "downsample_mode": settings.get("downsample_mode", "step_down") == "step_down",
        "semantic_techer": "hubert" in settings.get("semantic_techer", "hubert_base_general"),
    }
    for name, known in variants.items():
        if not known:
            raise LoadError(
                f"{folder / 'config.json'} asks for {name} {settings[name]!r}, which Higgs Audio v2's codec has not.",
                f"{folder / 'config.json'} 中的 {name} 为 {settings[name]!r}，Higgs Audio v2 编解码器不支持。",
            )
    ratios = settings.get("ratios", [8, 5, 4, 2])
    rate, size = settings.get("sample_rate", 16_000), settings.get("bins", 1024)
    # The original takes HuBERT base from the hub; where it is another one, a config may say so in native words.
    hubert = _hubert_settings(shapes) | settings.get("semantic_model_config", {})
    acoustic_hidden = settings.get("D", 128)
    return {
        "acoustic_model_config": {
            "model_type": "dac",
            "encoder_hidden_size": shapes.get("encoder.block.0.weight", (64,))[0],
            "decoder_hidden_size": shapes.get("decoder_2.model.0.weight", (1024,))[0],
            "hidden_size": acoustic_hidden,
            "downsampling_ratios": ratios,
            "upsampling_ratios": ratios,
        },
        "semantic_model_config": hubert,
        "sample_rate": rate,
        "semantic_sample_rate": settings.get("semantic_sample_rate") or 16_000,
        "codebook_size": size,
        "codebook_dim": settings.get("codebook_dim") or acoustic_hidden + hubert["hidden_size"],
        # The native config counts codebooks by bandwidth and rounds down, hence the half.
        "target_bandwidths": [
            (settings.get("n_q", 8) + 0.5) * math.ceil(math.log2(size)) * math.ceil(rate / math.prod(ratios)) / 1000
        ],
    }


def _hubert_settings(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """HuBERT's config as its weights show it: a base model where they show nothing, 64 dimensions a head."""
    root = "semantic_model."
    hidden = shapes.get(root + "encoder.layer_norm.weight", (768,))[0]
    intermediate = shapes.get(root + "encoder.layers.0.feed_forward.intermediate_dense.weight", (3072,))[0]
    position = shapes.get(root + "encoder.pos_conv_embed.conv.weight", (hidden, hidden // 16, 128))
    layers = {
        int(match[1]) for name in shapes if (match := re.match(r"semantic_model\.encoder\.layers\.(\d+)\.", name))
    }
    convolutions = [shapes.get(f"{root}feature_extractor.conv_layers.{i}.conv.weight", (512,))[0] for i in range(7)]
    return {
        "model_type": "hubert",
        "hidden_size": hidden,
        "num_attention_heads": max(1, hidden // 64),
        "num_hidden_layers": len(layers) or 12,
        "intermediate_size": intermediate,
        "conv_dim": convolutions,
        "num_conv_pos_embeddings": position[2],
        "num_conv_pos_embedding_groups": hidden // position[1],
    }
