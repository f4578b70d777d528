"""A complete tiny Higgs Audio v2 in one folder: language model, tokenizer, chat template, and a codec in `codec/`.

    python tests/make_tiny_checkpoint.py DIR --layout native --seed 0

It speaks noise, but as the real one does: the wiring, names and files are the published ones', its greedy answers
wander, and some of them end by themselves. One seed, one set of weights: both layouts hold the same model.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

TOKENIZER = Path(__file__).parent / "golden" / "higgs-v2-tiny-original"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")

VOCAB, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN = 267, 64, 3, 4, 2, 16, 128
CODEBOOKS, CODES, EOS = 8, 1026, 1025
LLAMA: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}
ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 0.125,
    "high_freq_factor": 0.5,
    "original_max_position_embeddings": 1024,
}
NATIVE_CONFIG = {
    "model_type": "higgs_audio_v2",
    "architectures": ["HiggsAudioV2ForConditionalGeneration"],
    "dtype": "float32",
    **LLAMA,
    "rope_parameters": {**ROPE, "rope_theta": 500000.0},
    "bos_token_id": 256,
    "eos_token_id": 260,
    "pad_token_id": 257,
    "num_codebooks": CODEBOOKS,
    "codebook_size": CODES,
    "audio_bos_token_id": 263,
    "audio_delay_token_id": 264,
    "audio_token_id": 266,
    "audio_stream_bos_id": 1024,
    "audio_stream_eos_id": EOS,
}
ORIGINAL_CONFIG = {
    "model_type": "higgs_audio",
    "architectures": ["HiggsAudioModel"],
    "torch_dtype": "float32",
    "text_config": {"model_type": "llama", **LLAMA, "rope_theta": 500000.0, "rope_scaling": ROPE},
    "audio_adapter_type": "dual_ffn_fast_forward",
    "audio_dual_ffn_layers": list(range(LAYERS)),
    "audio_ffn_hidden_size": HIDDEN,
    "audio_ffn_intermediate_size": FFN,
    "audio_num_codebooks": CODEBOOKS,
    "audio_codebook_size": CODES - 2,
    "audio_stream_bos_id": 1024,
    "audio_stream_eos_id": EOS,
    "audio_in_token": "<|AUDIO|>",
    "audio_in_token_idx": 265,
    "audio_out_token": "<|AUDIO_OUT|>",
    "audio_out_token_idx": 266,
    "audio_out_bos_token_id": 263,
    "audio_eos_token_id": 262,
    "pad_token_id": 257,
    "audio_decoder_proj_num_layers": 0,
    "audio_embed_avg": False,
    "encode_audio_in_tokens": True,
    "encode_whisper_embed": False,
    "skip_audio_tower": True,
    "use_audio_out_embed_projector": False,
    "use_audio_out_self_attention": False,
    "use_delay_pattern": True,
    "use_rq_transformer": False,
}
# Says what the template of native checkpoints says: a clip anywhere is an `audio_out` clip.
CHAT_TEMPLATE = """\
{%- set clip = '<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>' -%}
{%- macro words(content) -%}
  {%- if content is string -%}{{ content | trim }}
  {%- else -%}{%- for part in content if part.type == 'text' -%}{{ part.text | trim }}{%- endfor -%}{%- endif -%}
{%- endmacro -%}
{%- macro opening(role) -%}{{ '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}{%- endmacro -%}
{%- if messages[0].role != 'system' -%}{{ raise_exception('The system message must come first.') }}{%- endif -%}
{{ bos_token + opening('system') + words(messages[0].content) }}
{%- set turns = messages[1:] -%}
{%- if turns and turns[0].role == 'scene' -%}
  {{- '\\n\\n<|scene_desc_start|>\\n' }}
  {%- if turns[0].content is string -%}{{ turns[0].content | trim }}
  {%- else -%}
    {%- set parts = turns[0].content -%}
    {%- for part in parts -%}
      {%- if part.type == 'audio' -%}{{ ' ' + clip }}{%- if not loop.last -%}{{ '\\n' }}{%- endif -%}
      {%- else -%}
        {{- part.text | trim }}
        {%- if loop.first and not loop.last -%}{{ '\\n\\n' }}
        {%- elif not loop.last and parts[loop.index].type != 'audio' -%}{{ '\\n' }}{%- endif -%}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {{- '\\n<|scene_desc_end|>' }}
  {%- set turns = turns[1:] -%}
{%- endif -%}
{{- '<|eot_id|>' }}
{%- for turn in turns -%}
  {{- opening(turn.role) + (clip if turn.role == 'assistant' else words(turn.content)) + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ opening('assistant') + '<|audio_out_bos|>' }}{%- endif -%}
"""


def make_tiny_checkpoint(
    folder: Path | str, layout: Literal["native", "original"] = "native", seed: int = 0, *, endless: bool = False
) -> Path:
    """Writes the whole model into `folder`, which is made, and returns it. `endless`: its answers hardly ever end."""
    from tiny_codec import write_tiny_codec

    folder, weights = Path(folder), tiny_weights(seed)
    if endless:
        for codebook in range(CODEBOOKS):
            prefer_end(weights, codebook, factor=0.0)
    write_language_model(folder, weights, layout)
    write_tiny_codec(folder / "codec", layout, seed)
    return folder


def write_language_model(
    folder: Path, weights: dict[str, Tensor], layout: Literal["native", "original"] = "native"
) -> Path:
    """The folder without a codec, from weights by their native names."""
    folder.mkdir(parents=True, exist_ok=True)
    native = layout == "native"
    _write_json(folder / "config.json", NATIVE_CONFIG if native else ORIGINAL_CONFIG)
    ids = {"bos_token_id": 256, "eos_token_id": 260, "pad_token_id": 257}
    _write_json(
        folder / "generation_config.json", ids | ({"ras_win_len": 7, "ras_win_max_num_repeat": 2} if native else {})
    )
    for name in TOKENIZER_FILES:
        shutil.copyfile(TOKENIZER / name, folder / name)
    if native:
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    else:
        weights = {original_name(name): tensor for name, tensor in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def tiny_weights(seed: int = 0) -> dict[str, Tensor]:
    """Random weights by their native names, float32."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float) -> Tensor:
        return torch.randn(shape, generator=generator) * std

    def norm() -> Tensor:
        return 1 + normal(HIDDEN, std=0.1)

    weights = {
        "model.embed_tokens.weight": normal(VOCAB, HIDDEN, std=0.5),
        "model.embed_audio_tokens.embed_audio_tokens.weight": normal(CODEBOOKS * CODES, HIDDEN, std=0.25),
        "model.norm.weight": norm(),
        "audio_lm_head.weight": normal(CODEBOOKS * CODES, HIDDEN, std=0.25),
        "text_lm_head.weight": normal(VOCAB, HIDDEN, std=0.25),
    }
    # Strong branches: what the answer does next then hangs on all of the past, and it does not fall into a loop.
    std = 2.0 * HIDDEN**-0.5
    for layer in (f"model.layers.{i}." for i in range(LAYERS)):
        for name, outputs in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            weights[f"{layer}self_attn.{name}_proj.weight"] = normal(outputs * HEAD_DIM, HIDDEN, std=std)
        weights[f"{layer}self_attn.o_proj.weight"] = normal(HIDDEN, HEADS * HEAD_DIM, std=std)
        for kind in ("", "audio_"):
            weights[f"{layer}{kind}input_layernorm.weight"] = norm()
            weights[f"{layer}{kind}post_attention_layernorm.weight"] = norm()
            for name in ("gate", "up"):
                weights[f"{layer}{kind}mlp.{name}_proj.weight"] = normal(FFN, HIDDEN, std=std)
            weights[f"{layer}{kind}mlp.down_proj.weight"] = normal(HIDDEN, FFN, std=std / 2)
    prefer_end(weights, codebook=0, factor=1.25)
    return weights


def prefer_end(weights: dict[str, Tensor], codebook: int, factor: float) -> None:
    """Makes a codebook's end code likelier (or, below 1, rarer) in place: its logit is `factor` times what it was."""
    weights["audio_lm_head.weight"][codebook * CODES + EOS] *= factor


def original_name(name: str) -> str:
    """boson_multimodal's name for a tensor of the native layout."""
    if name.endswith("_lm_head.weight"):
        return f"audio_decoder_proj.{name}"
    return name.replace("model.embed_audio_tokens.embed_audio_tokens.", "audio_codebook_embeddings.").removeprefix(
        "model."
    )


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Writes a complete tiny Higgs Audio v2 model into a folder.")
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--layout", choices=("native", "original"), default="native")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    folder = make_tiny_checkpoint(args.folder, args.layout, args.seed)
    print(f"{folder}: --model-path {folder} --audio-tokenizer-path {folder / 'codec'}")


if __name__ == "__main__":
    root = Path(__file__).resolve().parent
    sys.path[:0] = [str(root), str(root.parent / "src")]
    main()
