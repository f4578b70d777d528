"""A decode step in few kernels, for an NVIDIA GPU: what HiggsNetwork.decode does, out of kernels.py.

The launches of a plain step, over thirty a layer, take longer than its weights are read. Knows the network's parts;
no sampling, no slots' owners.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from higgs_server.backends.higgs_v2.attention_kernel import attend, splits_of
from higgs_server.backends.higgs_v2.kernels import embed, product
from higgs_server.backends.higgs_v2.projection import Projection

if TYPE_CHECKING:
    from higgs_server.backends.higgs_v2.network import HiggsNetwork, Layer

_TRIED = ((1, 320), (3, 200), (32, 50), (64, 50))
"""Rows and positions that need every kernel: those for one row and for several, for a past in splits and whole."""
_TOLERANCE = 0.1
"""Rounding, through all layers in bfloat16, changes logits by a few hundredths; an error changes them altogether."""


class FusedDecode:
    """Called like HiggsNetwork.decode, whose result it gives but for rounding."""

    def __init__(self, network: HiggsNetwork) -> None:
        self._network = network
        self._turns: dict[int, tuple[Tensor, Tensor]] = {}
        on_cuda = network.device.type == "cuda"
        self._processors = torch.cuda.get_device_properties(network.device).multi_processor_count if on_cuda else 1

    def __call__(self, kv_cache: Tensor, rows: Tensor, positions: Tensor, max_len: int) -> Tensor:
        """Nothing is asked of the host, so that a CUDA graph can be made of it."""
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

    @classmethod
    def tried(cls, network: HiggsNetwork) -> FusedDecode | None:
        """For a network on a GPU; None where it does not compute what the network does."""
        fused, dice = cls(network), torch.Generator().manual_seed(0)
        for batch, length in _TRIED:
            noise = torch.randn(network.new_kv_cache(batch, length).shape, generator=dice)
            rows = torch.randint(network.codebook_size, (batch, network.num_codebooks), generator=dice)
            positions = torch.randint(length, (batch,), generator=dice)
            ours, plain = (noise.to(network.device, network.dtype, copy=True) for _ in range(2))
            rows, positions = rows.to(network.device), positions.to(network.device)
            with torch.inference_mode():
                result = fused(ours, rows, positions, length)
                reference = network.decode(plain, rows, positions, length)
            slots = torch.arange(batch, device=network.device)
            written, expected = (cache[:, :, slots, :, positions].float() for cache in (ours, plain))
            for value, wanted in ((result, reference), (written, expected)):
                if not (value - wanted).norm() < _TOLERANCE * wanted.norm():
                    return None
        return fused

    def _rotations(self, max_len: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of every position's angles, [max_len, head_dim / 2] each, kept where graphs find them."""
        if max_len not in self._turns:
            self._turns[max_len] = self._network.rotations(torch.arange(max_len, device=self._network.device))
        return self._turns[max_len]


def _through(projection: Projection, x: Tensor, **around: Any) -> Tensor:
    return product(x, projection.weight, projection.scales, **around)
