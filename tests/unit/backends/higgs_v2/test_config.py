from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from higgs_server.backends.higgs_v2.config import HiggsConfig, Llama3Scaling
from higgs_server.backends.higgs_v2.network import rotary_frequencies
from higgs_server.types import LoadError
from make_tiny_checkpoint import NATIVE_CONFIG, ORIGINAL_CONFIG

PUBLISHED: dict[str, Any] = {
    "model_type": "higgs_audio",
    "audio_adapter_type": "dual_ffn_fast_forward",
    "audio_codebook_size": 1024,
    "audio_decoder_proj_num_layers": 0,
    "audio_dual_ffn_layers": list(range(28)),
    "audio_embed_avg": False,
    "audio_ffn_hidden_size": 3072,
    "audio_ffn_intermediate_size": 8192,
    "audio_num_codebooks": 8,
    "audio_stream_bos_id": 1024,
    "audio_stream_eos_id": 1025,
    "skip_audio_tower": True,
    "text_config": {
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "num_attention_heads": 24,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "vocab_size": 128256,
    },
    "use_audio_out_embed_projector": False,
    "use_audio_out_self_attention": 0,
    "use_delay_pattern": True,
    "use_rq_transformer": False,
}


def test_the_published_original_model() -> None:
    config = HiggsConfig.from_dict(PUBLISHED)
    assert config.layout == "original"
    assert (config.hidden_size, config.num_layers, config.num_heads, config.num_kv_heads) == (3072, 28, 24, 8)
    assert (config.head_dim, config.text_ffn_size, config.audio_ffn_size) == (128, 8192, 8192)
    assert config.audio_ffn_layers == frozenset(range(28))
    assert (config.num_codebooks, config.codebook_size) == (8, 1026)
    assert config.max_positions == 131072
    assert config.rope_scaling == Llama3Scaling(32.0, 1.0, 4.0, 8192)


def test_both_layouts_of_one_model_are_the_same_facts() -> None:
    native, original = HiggsConfig.from_dict(NATIVE_CONFIG), HiggsConfig.from_dict(ORIGINAL_CONFIG)
    assert {name: getattr(native, name) for name in native.__slots__ if name != "layout"} == {
        name: getattr(original, name) for name in original.__slots__ if name != "layout"
    }


def test_the_two_published_spellings_of_the_rope_are_one() -> None:
    """The original says 1 and 4 turns of 8192, the native one 1/8 and 1/2 of 1024."""
    original = HiggsConfig.from_dict(PUBLISHED)
    native = copy.deepcopy(PUBLISHED)
    native["text_config"]["rope_scaling"] |= {
        "low_freq_factor": 0.125,
        "high_freq_factor": 0.5,
        "original_max_position_embeddings": 1024,
    }
    torch.testing.assert_close(rotary_frequencies(original), rotary_frequencies(HiggsConfig.from_dict(native)))


def test_the_older_name_of_the_rope_type_counts() -> None:
    older = copy.deepcopy(PUBLISHED)
    scaling = older["text_config"]["rope_scaling"]
    scaling["type"] = scaling.pop("rope_type")
    assert HiggsConfig.from_dict(older) == HiggsConfig.from_dict(PUBLISHED)


def test_a_native_class_default_does_not_cut_the_context() -> None:
    assert HiggsConfig.from_dict({**NATIVE_CONFIG, "max_position_embeddings": 2048}).max_positions == 8192


@pytest.mark.parametrize("kind", ["llama", "higgs_audio_v2_tokenizer", None, 3])
def test_another_model_is_named(kind: Any) -> None:
    with pytest.raises(LoadError, match="neither a native"):
        HiggsConfig.from_dict({"model_type": kind})


@pytest.mark.parametrize(
    ("base", "change", "message"),
    [
        (NATIVE_CONFIG, {"hidden_size": None}, "hidden_size is None"),
        (NATIVE_CONFIG, {"hidden_size": 10**19}, "hidden_size is 10000"),
        (NATIVE_CONFIG, {"rms_norm_eps": float("nan")}, "rms_norm_eps is nan instead of a positive number"),
        (NATIVE_CONFIG, {"rope_parameters": {"rope_theta": 0}}, "rope_theta is 0"),
        (NATIVE_CONFIG, {"codebook_size": 1024}, "leaves no room"),
        (NATIVE_CONFIG, {"num_key_value_heads": 3}, "do not go together"),
        (NATIVE_CONFIG, {"head_dim": 15}, "odd"),
        (NATIVE_CONFIG, {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        (NATIVE_CONFIG, {"attention_bias": True}, "attention_bias"),
        (NATIVE_CONFIG, {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "yarn"),
        (NATIVE_CONFIG, {"rope_parameters": None}, "rope_theta"),
        (ORIGINAL_CONFIG, {"text_config": None}, "text_config is missing"),
        (ORIGINAL_CONFIG, {"audio_adapter_type": "stack"}, "audio_adapter_type='stack'"),
        (ORIGINAL_CONFIG, {"audio_dual_ffn_layers": [0]}, "audio skips"),
        (ORIGINAL_CONFIG, {"audio_dual_ffn_layers": [0, 9]}, "does not name layers"),
        (ORIGINAL_CONFIG, {"audio_dual_ffn_layers": [[0]]}, "does not name layers"),
        (ORIGINAL_CONFIG, {"audio_embed_avg": True}, "audio_embed_avg"),
        (ORIGINAL_CONFIG, {"audio_ffn_hidden_size": 32}, "audio_ffn_hidden_size"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(base: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(LoadError, match=message) as error:
        HiggsConfig.from_dict({**base, **change}, "a/config.json")
    assert "a/config.json" in str(error.value)
    assert error.value.zh != str(error.value)


def test_folders_without_a_readable_config(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"no config\.json"):
        HiggsConfig.from_folder(tmp_path)
    for content in ("{", "[1]", '"x"'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(LoadError):
            HiggsConfig.from_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(NATIVE_CONFIG))
    assert HiggsConfig.from_folder(tmp_path).layout == "native"
