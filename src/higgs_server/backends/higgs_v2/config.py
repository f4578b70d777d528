"""A checkpoint's config.json, in either layout, as the facts that the language model's network needs.

Native is transformers' `higgs_audio_v2`, original is boson_multimodal's `higgs_audio`. No class default of either is
taken for a model's own value: what shapes the network must be in the file. Knows no weights and no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from higgs_server.types import LoadError

Layout = Literal["native", "original"]

LONGEST_CONTEXT_PROVEN = 8192
"""Positions that boson_multimodal's own scripts use. Native configs say 2048, which is a class default: their own
default answer (2048 frames) would not fit. Rotary positions have no table that could end."""


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Rotary frequencies stretched for long contexts, as Llama 3 does it."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True, slots=True)
class HiggsConfig:
    """Shape and ids of one Higgs Audio v2 language model."""

    layout: Layout
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    text_ffn_size: int
    audio_ffn_size: int
    audio_ffn_layers: frozenset[int]
    """Layers with an FFN and norms of their own for audio positions; in all others audio shares the text's."""
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: Llama3Scaling | None
    max_positions: int
    num_codebooks: int
    codebook_size: int
    """Codes a codebook has, stream-BOS and stream-EOS included (1026)."""
    stream_bos_id: int
    stream_eos_id: int

    @classmethod
    def from_folder(cls, folder: Path) -> HiggsConfig:
        """Reads `config.json`. Raises LoadError where the folder holds no Higgs Audio v2 language model."""
        file = folder / "config.json"
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise LoadError(
                f"There is no config.json in {folder}: give --model-path a folder with a Higgs Audio v2 checkpoint.",
                f"{folder} 中没有 config.json：请让 --model-path 指向 Higgs Audio v2 模型目录。",
            ) from None
        except (OSError, ValueError) as error:
            raise LoadError(f"{file} cannot be read: {error}.", f"无法读取 {file}：{error}。") from None
        return cls.from_dict(values if isinstance(values, dict) else {}, str(file))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "config.json") -> HiggsConfig:
        """The parsed config.json; `source` names it in errors."""
        reader = _Reader(values, source)
        match values.get("model_type"):
            case "higgs_audio_v2":
                return _native(reader)
            case "higgs_audio":
                return _original(reader)
            case other:
                raise LoadError(
                    f"{source} is of model_type {other!r}: it is neither a native (higgs_audio_v2) nor an original "
                    "(higgs_audio) Higgs Audio v2 language model. Point --model-path to one of those.",
                    f"{source} 的 model_type 是 {other!r}，既不是 higgs_audio_v2 也不是 higgs_audio："
                    "请让 --model-path 指向 Higgs Audio v2 模型。",
                )


class _Reader:
    """Typed look-ups in a config, with errors that name the key."""

    def __init__(self, values: Mapping[str, Any], source: str):
        self.values, self.source = values, source

    def integer(self, key: str) -> int:
        value = self.values.get(key)
        if type(value) is not int or not 0 <= value < 2**31:
            raise self.error(f"{key} is {value!r} instead of a whole number", f"{key} 应为整数，实为 {value!r}")
        return value

    def number(self, key: str) -> float:
        value = self.values.get(key)
        if type(value) not in (int, float) or not 0 < value < math.inf:  # type: ignore[operator]
            raise self.error(f"{key} is {value!r} instead of a positive number", f"{key} 应为正数，实为 {value!r}")
        return float(value)  # type: ignore[arg-type]

    def section(self, key: str) -> _Reader:
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise self.error(f"{key} is missing", f"缺少 {key}")
        return _Reader(value, f"{self.source} ({key})")

    def refuse(self, **plain: tuple[Any, ...]) -> None:
        """Raises LoadError where a key is there with another value than those of the published models."""
        for key, allowed in plain.items():
            value = self.values.get(key, allowed[0])
            if value not in allowed:
                raise self.error(
                    f"{key}={value!r} is a variant of the model that this server does not have",
                    f"不支持 {key}={value!r} 这种模型变体",
                )

    def error(self, message: str, zh: str) -> LoadError:
        return LoadError(f"{self.source}: {message}.", f"{self.source}：{zh}。")


def _native(config: _Reader) -> HiggsConfig:
    _refuse_llama_variants(config)
    num_layers = config.integer("num_hidden_layers")
    ffn_size = config.integer("intermediate_size")
    return _checked(
        config,
        HiggsConfig(
            layout="native",
            audio_ffn_size=ffn_size,
            audio_ffn_layers=frozenset(range(num_layers)),
            num_codebooks=config.integer("num_codebooks"),
            codebook_size=config.integer("codebook_size"),
            stream_bos_id=config.integer("audio_stream_bos_id"),
            stream_eos_id=config.integer("audio_stream_eos_id"),
            **_llama(config),
        ),
    )


def _original(config: _Reader) -> HiggsConfig:
    text = config.section("text_config")
    _refuse_llama_variants(text)
    config.refuse(
        audio_adapter_type=("dual_ffn", "dual_ffn_fast_forward"),
        audio_decoder_proj_num_layers=(0,),
        audio_embed_avg=(False,),
        use_audio_out_embed_projector=(False,),
        use_audio_out_self_attention=(False, None),
        use_rq_transformer=(False,),
        use_delay_pattern=(True,),
        skip_audio_tower=(True,),
        audio_ffn_hidden_size=(text.integer("hidden_size"),),
    )
    num_layers = text.integer("num_hidden_layers")
    dual = config.values.get("audio_dual_ffn_layers")
    if not isinstance(dual, list) or not all(index in range(num_layers) for index in dual):
        raise config.error("audio_dual_ffn_layers does not name layers", "audio_dual_ffn_layers 无效")
    if config.values.get("audio_adapter_type") == "dual_ffn_fast_forward" and len(set(dual)) < num_layers:
        # There audio skips the layers without an audio FFN, attention included. No published model has such layers.
        raise config.error(
            "dual_ffn_fast_forward with layers that audio skips is a variant that this server does not have",
            "不支持含有跳过音频层的 dual_ffn_fast_forward 变体",
        )
    return _checked(
        config,
        HiggsConfig(
            layout="original",
            audio_ffn_size=config.integer("audio_ffn_intermediate_size"),
            audio_ffn_layers=frozenset(dual),
            num_codebooks=config.integer("audio_num_codebooks"),
            codebook_size=config.integer("audio_codebook_size") + 2,
            stream_bos_id=config.integer("audio_stream_bos_id"),
            stream_eos_id=config.integer("audio_stream_eos_id"),
            **_llama(text),
        ),
    )


def _refuse_llama_variants(config: _Reader) -> None:
    config.refuse(hidden_act=("silu",), attention_bias=(False,), mlp_bias=(False,))


def _llama(config: _Reader) -> dict[str, Any]:
    """The backbone's facts, which both layouts name as Llama does (`rope_parameters` is transformers 5's spelling)."""
    hidden_size, num_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    rope = dict(config.values.get("rope_parameters") or config.values.get("rope_scaling") or {})
    rope.setdefault("rope_theta", config.values.get("rope_theta"))
    kind = rope.get("rope_type") or rope.get("type") or "default"  # `type` is the older spelling
    if kind not in ("default", "llama3"):
        raise config.error(f"rope_type {kind!r} is not one this server has", f"不支持 rope_type {kind!r}")
    rope_reader = _Reader(rope, f"{config.source} (rope)")
    return {
        "vocab_size": config.integer("vocab_size"),
        "hidden_size": hidden_size,
        "num_layers": config.integer("num_hidden_layers"),
        "num_heads": num_heads,
        "num_kv_heads": config.integer("num_key_value_heads"),
        "head_dim": config.integer("head_dim") if config.values.get("head_dim") else hidden_size // max(num_heads, 1),
        "text_ffn_size": config.integer("intermediate_size"),
        "rms_norm_eps": config.number("rms_norm_eps"),
        "rope_theta": rope_reader.number("rope_theta"),
        "rope_scaling": Llama3Scaling(
            factor=rope_reader.number("factor"),
            low_freq_factor=rope_reader.number("low_freq_factor"),
            high_freq_factor=rope_reader.number("high_freq_factor"),
            original_max_positions=rope_reader.integer("original_max_position_embeddings"),
        )
        if kind == "llama3"
        else None,
        "max_positions": max(config.integer("max_position_embeddings"), LONGEST_CONTEXT_PROVEN),
    }


def _checked(source: _Reader, config: HiggsConfig) -> HiggsConfig:
    """Raises LoadError where numbers contradict each other."""
    if not config.num_layers or not config.num_kv_heads or config.num_heads % config.num_kv_heads:
        raise source.error("the numbers of layers and heads do not go together", "层数或注意力头数不合理")
    if config.head_dim % 2:
        raise source.error("head_dim is odd", "head_dim 必须为偶数")
    if not max(config.stream_bos_id, config.stream_eos_id) < config.codebook_size:
        raise source.error(
            f"codebook_size {config.codebook_size} leaves no room for the stream's begin and end codes "
            f"({config.stream_bos_id}, {config.stream_eos_id})",
            f"codebook_size {config.codebook_size} 容不下流的起止码",
        )
    return config
