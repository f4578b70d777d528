"""HiggsNetwork's steps in few kernels, for an NVIDIA GPU, and so that a CUDA graph can be made of each.

The launches of a plain step, over thirty a layer, take longer than its weights are read. Knows the network's parts;
no sampling, no slots' owners.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from higgs_server.backends.higgs_v2.attention_kernel import attend, attend_run, splits_of
from higgs_server.backends.higgs_v2.kernels import embed, product
from higgs_server.backends.higgs_v2.projection import Projection
from higgs_server.engine.interface import TextRun

if TYPE_CHECKING:
    from higgs_server.backends.higgs_v2.network import Branch, HiggsNetwork, Layer

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
        cos, sin = self._rotations(kv_cache.shape[4])
        splits = splits_of(c.num_kv_heads * len(rows), max_len, self._processors)

        def attention(qkv: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            return attend(qkv, cos, sin, keys, values, positions, c.num_kv_heads, splits)

        x = embed(rows, network.audio_embedding, network.codebook_size)
        x = self._layers(x, kv_cache, attrgetter("audio"), attention)
        logits = _through(network.head, x, gain=network.norm.weight, eps=c.rms_norm_eps).float()
        return logits.view(len(rows), network.num_codebooks, network.codebook_size)

    def read_text(self, kv_cache: Tensor, token_ids: Tensor, place: Tensor) -> Tensor:
        """Like HiggsNetwork.read_text; what it returns means nothing."""
        cos, sin = self._rotations(kv_cache.shape[4])
        kv_heads = self._network.config.num_kv_heads

        def attention(qkv: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            return attend_run(qkv, cos, sin, keys, values, place, kv_heads)

        x = F.embedding(token_ids, self._network.text_embedding)
        return self._layers(x, kv_cache, attrgetter("text"), attention)

    def _layers(
        self,
        x: Tensor,
        kv_cache: Tensor,
        branch_of: Callable[[Layer], Branch],
        attention: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> Tensor:
        """x [n, hidden], all rows of one kind, through all layers. The last norm is not applied."""
        c = self._network.config
        for index, layer in enumerate(cast("Iterable[Layer]", self._network.layers)):
            branch = branch_of(layer)
            qkv = _through(layer.qkv, x, gain=branch.input_norm.weight, eps=c.rms_norm_eps)
            seen = attention(qkv.view(len(x), -1, c.head_dim), kv_cache[index, 0], kv_cache[index, 1])
            x = _through(layer.out, seen, residual=x)
            gated = _through(branch.gate_up, x, gain=branch.ffn_norm.weight, eps=c.rms_norm_eps, gated=True)
            x = _through(branch.down, gated, residual=x)
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
