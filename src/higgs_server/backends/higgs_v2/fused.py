"""HiggsNetwork's steps in few kernels, for an NVIDIA GPU, and so that a CUDA graph can be made of each.

The launches of a plain step, over thirty a layer, take longer than its weights are read. Knows the network's parts;
no sampling, no slots' owners.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from higgs_server.backends.higgs_v2.attention_kernel import attend, attend_run, splits_of
from higgs_server.backends.higgs_v2.kernels import embed, product
from higgs_server.backends.higgs_v2.projection import Projection
from higgs_server.engine.interface import TextRun

if TYPE_CHECKING:
    from higgs_server.backends.higgs_v2.network import HiggsNetwork, Layer

_TRIED = ((1, 320), (3, 60), (32, 50), (64, 50))
"""Rows and positions that need every kernel: those for one row and for several, for a past in splits and whole."""
_TOLERANCE = 0.1
"""Rounding, through all layers in bfloat16, changes logits by a few hundredths; an error changes them altogether."""


class FusedSteps:
    """Does what the network does, but for rounding. Nothing is asked of the host."""

    def __init__(self, network: HiggsNetwork) -> None:
        self._network = network
        self._turns: dict[int, tuple[Tensor, Tensor]] = {}
        on_cuda = network.device.type == "cuda"
        self._processors = torch.cuda.get_device_properties(network.device).multi_processor_count if on_cuda else 1

    def decode(self, kv_cache: Tensor, rows: Tensor, positions: Tensor, max_len: int) -> Tensor:
        """Like HiggsNetwork.decode."""
        network, c = self._network, self._network.config
        eps, batch = c.rms_norm_eps, len(rows)
        cos, sin = self._rotations(kv_cache.shape[4])
        splits = splits_of(c.num_kv_heads * batch, max_len, self._processors)
        x = embed(rows, network.audio_embedding, network.codebook_size)
        for index, layer in enumerate(cast("Iterable[Layer]", network.layers)):
            audio = layer.audio
            qkv = _through(layer.qkv, x, gain=audio.input_norm.weight, eps=eps).view(batch, -1, c.head_dim)
            keys, values = kv_cache[index, 0], kv_cache[index, 1]
            seen = attend(qkv, cos, sin, keys, values, positions, c.num_kv_heads, splits)
            x = _through(layer.out, seen, residual=x)
            gated = _through(audio.gate_up, x, gain=audio.ffn_norm.weight, eps=eps, gated=True)
            x = _through(audio.down, gated, residual=x)
        logits = _through(network.head, x, gain=network.norm.weight, eps=eps).float()
        return logits.view(batch, network.num_codebooks, network.codebook_size)

    def read_text(self, kv_cache: Tensor, token_ids: Tensor, place: Tensor) -> Tensor:
        """Like HiggsNetwork.read_text; what it returns means nothing."""
        network, c = self._network, self._network.config
        eps, count = c.rms_norm_eps, len(token_ids)
        cos, sin = self._rotations(kv_cache.shape[4])
        x = F.embedding(token_ids, network.text_embedding)
        for index, layer in enumerate(cast("Iterable[Layer]", network.layers)):
            text = layer.text
            qkv = _through(layer.qkv, x, gain=text.input_norm.weight, eps=eps).view(count, -1, c.head_dim)
            keys, values = kv_cache[index, 0], kv_cache[index, 1]
            x = _through(layer.out, attend_run(qkv, cos, sin, keys, values, place, c.num_kv_heads), residual=x)
            gated = _through(text.gate_up, x, gain=text.ffn_norm.weight, eps=eps, gated=True)
            x = _through(text.down, gated, residual=x)
        return x

    @classmethod
    def tried(cls, network: HiggsNetwork) -> FusedSteps | None:
        """For a network on a GPU; None where it does not compute what the network does."""
        fused, device, dice = cls(network), network.device, torch.Generator().manual_seed(0)

        def caches(slots: int, length: int) -> list[Tensor]:
            noise = torch.randn(network.new_kv_cache(slots, length).shape, generator=dice)
            return [noise.to(device, network.dtype, copy=True) for _ in range(2)]

        with torch.inference_mode():
            for batch, length in _TRIED:
                ours, plain = caches(batch, length)
                rows = torch.randint(network.codebook_size, (batch, network.num_codebooks), generator=dice).to(device)
                positions = torch.randint(length, (batch,), generator=dice).to(device)
                result = fused.decode(ours, rows, positions, length)
                slots = torch.arange(batch, device=device)
                reference = network.decode(plain, rows, positions, length)
                written, expected = (cache[:, :, slots, :, positions] for cache in (ours, plain))
                if not (_close(result, reference) and _close(written, expected)):
                    return None
            ours, plain = caches(2, 128)
            token_ids = torch.randint(network.config.vocab_size, (64,), generator=dice)
            fused.read_text(ours, token_ids.to(device), torch.tensor([1, 70, 40], device=device))
            network.prefill(plain, 1, 70, [TextRun(token_ids[:40].numpy())])
            if not _close(ours[:, :, 1, :, 70:110], plain[:, :, 1, :, 70:110]):
                return None
        return fused

    def _rotations(self, max_len: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of every position's angles, [max_len, head_dim / 2] each, kept where graphs find them."""
        if max_len not in self._turns:
            self._turns[max_len] = self._network.rotations(torch.arange(max_len, device=self._network.device))
        return self._turns[max_len]


def _through(projection: Projection, x: Tensor, **around: Any) -> Tensor:
    return product(x, projection.weight, projection.scales, **around)


def _close(value: Tensor, reference: Tensor) -> bool:
    return bool((value.float() - reference.float()).norm() < _TOLERANCE * reference.float().norm())
