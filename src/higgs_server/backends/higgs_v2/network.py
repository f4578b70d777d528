"""The language model as the engine wants it: prefill runs of a prompt, decode one audio row for every slot.

Llama 3 with a second FFN and second norms for audio positions (DualFFN). Positions are either text or audio and the
caller knows which, so no mask chooses between the two: a prompt's rows are sorted by kind, and a decode batch is audio
throughout. Numerics follow transformers' HiggsAudioV2Model: norms in fp32, rotary tables and residuals in the model's
dtype. Knows no text, no sampling, no slots' owners, no file formats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from higgs_server.backends.higgs_v2.config import HiggsConfig
from higgs_server.backends.higgs_v2.projection import ROWS_ONE_BY_ONE, Projection
from higgs_server.engine.interface import Run, TextRun

if TYPE_CHECKING:
    from higgs_server.backends.higgs_v2.fused import FusedSteps

TEXT_ROWS = 512
"""More text than the engine reads at once on a GPU."""

# (layer, query [n, heads, head_dim], key and value [n, kv_heads, head_dim]) -> [n, heads * head_dim]
_Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class Norm(nn.Module):
    """Root mean square norm, computed in fp32."""

    weight: nn.Parameter

    def __init__(self, size: int, eps: float, device: torch.device, dtype: torch.dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, device=device, dtype=dtype), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Branch(nn.Module):
    """What a layer has once for text and once for audio: two norms and an FFN, gate and up fused."""

    def __init__(self, config: HiggsConfig, ffn_size: int, device: torch.device, dtype: torch.dtype, int8: bool):
        super().__init__()
        self.input_norm = Norm(config.hidden_size, config.rms_norm_eps, device, dtype)
        self.ffn_norm = Norm(config.hidden_size, config.rms_norm_eps, device, dtype)
        self.gate_up = Projection(config.hidden_size, 2 * ffn_size, device, dtype, int8=int8)
        self.down = Projection(ffn_size, config.hidden_size, device, dtype, int8=int8)

    def before_attention(self, x: Tensor) -> Tensor:
        return self.input_norm(x)  # type: ignore[no-any-return]

    def ffn(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)  # type: ignore[no-any-return]


class Layer(nn.Module):
    """Attention shared by text and audio, and a branch for each. `audio` is `text` where the model has only one."""

    text: Branch
    audio: Branch

    def __init__(self, config: HiggsConfig, index: int, device: torch.device, dtype: torch.dtype, int8: bool):
        super().__init__()
        heads = config.num_heads + 2 * config.num_kv_heads
        self.qkv = Projection(config.hidden_size, heads * config.head_dim, device, dtype, int8=int8)
        self.out = Projection(config.num_heads * config.head_dim, config.hidden_size, device, dtype, int8=int8)
        self.text = Branch(config, config.text_ffn_size, device, dtype, int8)
        has_own = index in config.audio_ffn_layers
        self.audio = Branch(config, config.audio_ffn_size, device, dtype, int8) if has_own else self.text

    def by_branch(self, part: Callable[[Branch, Tensor], Tensor], x: Tensor, texts: int) -> Tensor:
        """A part of the branch that each of the rows x [n, hidden] has; the first `texts` of them are text."""
        if texts == 0 or texts == len(x) or self.audio is self.text:
            return part(self.text if texts else self.audio, x)
        return torch.cat((part(self.text, x[:texts]), part(self.audio, x[texts:])))


class HiggsNetwork(nn.Module):
    """A FrameModel (see engine/interface.py). Built with uninitialised weights; checkpoint.py fills them."""

    prefix_folder: Path | None = None
    """Where kept prefixes outlive the process, if anywhere."""
    fused: FusedSteps | None = None
    """Its steps in few kernels, where there are any (see fused.py)."""

    def __init__(self, config: HiggsConfig, device: torch.device, dtype: torch.dtype, *, int8: bool = False):
        """int8: the layers' products keep their weights in 8 bits; embeddings, norms and the head stay in `dtype`."""
        super().__init__()
        self.config, self.dtype = config, dtype
        self.num_codebooks, self.codebook_size = config.num_codebooks, config.codebook_size
        self.stream_bos_id, self.stream_eos_id = config.stream_bos_id, config.stream_eos_id
        self.max_positions = config.max_positions
        codes = config.num_codebooks * config.codebook_size
        self.text_embedding = _table(config.vocab_size, config.hidden_size, device, dtype)
        self.audio_embedding = _table(codes, config.hidden_size, device, dtype)
        self.layers = nn.ModuleList(Layer(config, i, device, dtype, int8) for i in range(config.num_layers))
        self.norm = Norm(config.hidden_size, config.rms_norm_eps, device, dtype)
        self.head = Projection(config.hidden_size, codes, device, dtype)
        self._work_on(device)

    def _work_on(self, device: torch.device) -> None:
        """Puts what is computed, and no weight, on a device."""
        self.device = device
        self.row_by_row = device.type == "cpu"
        """Whether a step does its rows one by one, which needs their lengths on the host and cannot be captured."""
        if device.type == "cuda":
            # cuDNN plans attention anew for every length of a prompt, in tens of milliseconds, and keeps each plan.
            torch.backends.cuda.enable_cudnn_sdp(False)
        # Made on the CPU: on "meta", where checkpoint.py plans first, arithmetic would import half of torch's compiler.
        self._frequencies = rotary_frequencies(self.config).to(device)
        self._codebook_offsets = (torch.arange(self.num_codebooks) * self.codebook_size).to(device)

    def new_kv_cache(self, slots: int, max_len: int) -> Tensor:
        """A zeroed cache [layers, 2, slots, kv_heads, max_len, head_dim]."""
        c = self.config
        shape = (c.num_layers, 2, slots, c.num_kv_heads, max_len, c.head_dim)
        return torch.zeros(shape, device=self.device, dtype=self.dtype)

    @torch.inference_mode()
    def prefill(self, kv_cache: Tensor, slot: int, start: int, runs: Sequence[Run]) -> Tensor:
        """Writes the runs into `slot` from position `start` on; positions before it are in the cache already.

        Returns the logits after the last position, float32 [codebooks, codebook_size].
        """
        texts: list[tuple[Tensor, Tensor]] = []
        audios: list[tuple[Tensor, Tensor]] = []
        for run in runs:
            hidden = self._embed(run)
            positions = torch.arange(start, start + len(hidden), device=self.device)
            (texts if isinstance(run, TextRun) else audios).append((hidden, positions))
            start += len(hidden)
        if not texts and not audios:
            raise ValueError("a prefill needs at least one run")
        hidden, positions = map(torch.cat, zip(*texts, *audios, strict=True))
        attend = self._attend_run(kv_cache, slot, positions, start)
        hidden = self._layers(hidden, positions, attend, sum(len(part) for part, _ in texts))
        return self._logits(hidden.index_select(0, positions.argmax()[None]))[0]

    @torch.inference_mode()
    def decode(self, kv_cache: Tensor, rows: Tensor, positions: Tensor, max_len: int) -> Tensor:
        """One decode step for slots 0 … B-1; every row is an audio row.

        rows: int64 [B, codebooks]; positions: int64 [B], where each is written; max_len: more than any of them, known
        on the host, the length of cache that is looked at. A row that is not in use stands at position 0. Returns
        float32 [B, codebooks, codebook_size]. On a CPU in fp32 a row's result does not depend on the others, to the
        bit.
        """
        if self.fused is not None:
            return self.fused.decode(kv_cache, rows, positions, max_len)
        batch = len(rows)
        if self.row_by_row and batch > ROWS_ONE_BY_ONE:
            parts = [slice(i, i + ROWS_ONE_BY_ONE) for i in range(0, batch, ROWS_ONE_BY_ONE)]
            return torch.cat([self.decode(kv_cache[:, :, p], rows[p], positions[p], max_len) for p in parts])
        attend = self._attend_slots(kv_cache[:, :, :batch, :, :max_len], positions)
        return self._logits(self._layers(self._embed_rows(rows), positions, attend, 0))

    @property
    def text_rows(self) -> int:
        """Rows that `read_text` takes at most; 0 where there are no kernels for it."""
        return 0 if self.fused is None else TEXT_ROWS

    @torch.inference_mode()
    def read_text(self, kv_cache: Tensor, token_ids: Tensor, place: Tensor) -> Tensor:
        """A run of text into the cache, with everything on the device: token_ids int64 [n], place int64 [3].

        place: the slot, the position of the first token, and how many of the n there are; those behind them only fill
        up. What is returned means nothing.
        """
        assert self.fused is not None
        return self.fused.read_text(kv_cache, token_ids, place)

    def quantized(self, name: str) -> Projection | None:
        """The product whose weight is the parameter of that name, where it is kept in int8."""
        module = self.get_submodule(name.rpartition(".")[0])
        return module if isinstance(module, Projection) and module.scales is not None else None

    def _to_device(self, ids: object) -> Tensor:
        tensor = torch.as_tensor(ids)
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def _embed(self, run: Run) -> Tensor:
        """[n, hidden]"""
        if isinstance(run, TextRun):
            return F.embedding(self._to_device(run.token_ids), self.text_embedding).to(self.dtype)
        return self._embed_rows(self._to_device(run.rows))

    def _embed_rows(self, rows: Tensor) -> Tensor:
        """rows [n, codebooks] -> the sum of their codes' embeddings [n, hidden]."""
        return F.embedding(rows + self._codebook_offsets, self.audio_embedding).sum(dim=-2)

    def _layers(self, x: Tensor, positions: Tensor, attend: _Attend, texts: int) -> Tensor:
        """x [n, hidden], of which the first `texts` are text, at positions [n] in any order, through all layers.

        The last norm is not applied.
        """
        c = self.config
        cos, sin = (turn[:, None] for turn in self.rotations(positions))
        for index, layer in enumerate(cast("Iterable[Layer]", self.layers)):
            qkv = layer.qkv(layer.by_branch(Branch.before_attention, x, texts)).view(len(x), -1, c.head_dim)
            query, key, value = qkv.split((c.num_heads, c.num_kv_heads, c.num_kv_heads), dim=1)
            x = x + layer.out(attend(index, _rotate(query, cos, sin), _rotate(key, cos, sin), value))
            x = x + layer.by_branch(Branch.ffn, x, texts)
        return x

    def rotations(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the rotary embedding's angles at positions [n], each [n, head_dim / 2]."""
        angles = positions[:, None].float() * self._frequencies
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(x)).float()
        return logits.view(len(x), self.num_codebooks, self.codebook_size)

    def _attend_run(self, kv_cache: Tensor, slot: int, positions: Tensor, end: int) -> _Attend:
        """Causal attention of new positions, the last before `end`, over everything in their slot up to themselves."""
        kv_heads = self.config.num_kv_heads
        n = len(positions)
        causal = torch.arange(end, device=self.device) <= positions[:, None]
        causal = causal.repeat(self.config.num_heads // kv_heads, 1)

        def attend(index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = kv_cache[index, 0, slot, :, :end], kv_cache[index, 1, slot, :, :end]
            keys[:, positions], values[:, positions] = key.transpose(0, 1), value.transpose(0, 1)
            # The query heads of one KV head stand behind one another as further queries: GQA without copying keys.
            grouped = query.transpose(0, 1).reshape(1, kv_heads, -1, query.shape[-1])
            result = F.scaled_dot_product_attention(grouped, keys[None], values[None], attn_mask=causal)
            return result.reshape(-1, n, query.shape[-1]).transpose(0, 1).reshape(n, -1)

        return attend

    def _attend_slots(self, kv_cache: Tensor, positions: Tensor) -> _Attend:
        """Attention of one position a slot, each over its own past. kv_cache is cut to the slots and length in use."""
        batch, kv_heads = len(positions), self.config.num_kv_heads
        slots = torch.arange(batch, device=self.device)
        lengths = (positions + 1).tolist() if self.row_by_row else []
        seen = torch.arange(kv_cache.shape[4], device=self.device) <= positions[:, None]

        def attend(index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = kv_cache[index, 0], kv_cache[index, 1]
            keys[slots, :, positions], values[slots, :, positions] = key, value
            grouped = query.view(batch, kv_heads, -1, query.shape[-1])
            if not self.row_by_row:
                result = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=seen[:, None, None])
                return result.reshape(batch, -1)
            # On a CPU row by row costs the same, needs no mask, and makes no row's bits depend on another's length.
            one_by_one = [
                F.scaled_dot_product_attention(grouped[b : b + 1], keys[b : b + 1, :, :n], values[b : b + 1, :, :n])
                for b, n in enumerate(lengths)
            ]
            return torch.cat(one_by_one).reshape(batch, -1)

        return attend


def _table(rows: int, size: int, device: torch.device, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(rows, size, device=device, dtype=dtype), requires_grad=False)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding: x [n, heads, head_dim], cos and sin [n, 1, head_dim / 2]; halves are the pairs' two sides."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rotary_frequencies(config: HiggsConfig) -> Tensor:
    """Radians a position, float32 [head_dim / 2], with Llama 3.1's scaling where the config asks for it.

    Wavelengths longer than the original context over `low_freq_factor` are stretched by `factor`, those shorter than
    it over `high_freq_factor` are left alone, and those between go over smoothly.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    turns = scaling.original_max_positions / (2 * math.pi / frequencies)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies
