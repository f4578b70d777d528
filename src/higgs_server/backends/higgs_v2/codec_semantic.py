"""The codec's listening half: HuBERT's view of a clip joined with the acoustic encoder's.

Knows tensors and the checkpoint's config, nothing of files or devices. Needed only to read a clip; HuBERT itself is
transformers'. Follows HiggsAudioV2TokenizerModel.encode.
"""

# Modules are untyped where they are called.
# mypy: disable-error-code="no-any-return,no-untyped-call"

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from higgs_server.backends.higgs_v2.codec_network import AcousticEncoder

if TYPE_CHECKING:
    from transformers import HiggsAudioV2TokenizerConfig

SEMANTIC_PADDING = 160
"""Zeros on each side of what HuBERT hears: half of its hop."""

SEMANTIC_WINDOW = 400
"""Samples that HuBERT's convolutions need for their first frame."""


@lru_cache(maxsize=8)
def _resampling_kernel(old: int, new: int, width: int = 6, rolloff: float = 0.99) -> tuple[Tensor, int]:
    """A Hann-windowed sinc for each of the `new` output phases: [new, 1, 2 * reach + old], and the reach in samples."""
    cutoff = min(old, new) * rolloff
    reach = math.ceil(width * old / cutoff)
    # float32 throughout, for the reference has it so.
    position = torch.arange(-reach, reach + old, dtype=torch.float32) / old
    phase = torch.arange(0, -new, -1, dtype=torch.float32) / new
    t = ((phase[:, None] + position) * cutoff).clamp(-width, width)
    window = torch.cos(t * math.pi / width / 2).square()
    return (torch.sinc(t) * window * (cutoff / old))[:, None], reach


def resample(samples: Tensor, old_rate: int, new_rate: int) -> Tensor:
    """Windowed-sinc resampling of [B, n] to [B, ceil(n * new_rate / old_rate)].

    What torchaudio.functional.resample does by default (six zero crossings, roll-off 0.99, Hann window), after Smith,
    "Digital Audio Resampling Home Page": HuBERT was trained behind exactly this filter.
    """
    if old_rate == new_rate:
        return samples
    divisor = math.gcd(old_rate, new_rate)
    old, new = old_rate // divisor, new_rate // divisor
    kernel, reach = _resampling_kernel(old, new)
    padded = F.pad(samples[:, None], (reach, reach + old))
    phases = F.conv1d(padded, kernel.to(samples), stride=old)  # [B, new, positions]
    return phases.transpose(1, 2).flatten(1)[:, : math.ceil(new * samples.shape[-1] / old)]


class SemanticUnit(nn.Module):
    """[B, C, T] -> [B, C, T]."""

    def __init__(self, channels: int, kernel_size: int, dilation: int) -> None:
        super().__init__()
        padding = (kernel_size - 1) // 2 * dilation
        self.conv1 = nn.Conv1d(channels, channels, kernel_size, padding=padding, dilation=dilation, bias=False)
        self.conv2 = nn.Conv1d(channels, channels, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.elu(self.conv1(F.elu(x))))


class SemanticBlock(nn.Module):
    """[B, channels, T] -> [B, out, T / stride]."""

    def __init__(self, channels: int, out: int, stride: int, kernel_size: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.res_units = nn.ModuleList(SemanticUnit(channels, kernel_size, dilation) for dilation in dilations)
        window = 3 if stride == 1 else 2 * stride
        self.conv = nn.Conv1d(channels, out, window, stride=stride, padding=(window - 1) // 2)

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.res_units:
            x = unit(x)
        return self.conv(x)


class SemanticEncoder(nn.Module):
    """HuBERT's features, convolved. [B, hidden, T] -> [B, hidden, T]."""

    def __init__(self, config: HiggsAudioV2TokenizerConfig) -> None:
        super().__init__()
        hidden = config.semantic_hidden_size
        self.conv = nn.Conv1d(hidden, hidden, config.kernel_size, padding=config.kernel_size // 2, bias=False)
        widths = [hidden, *(int(hidden * ratio) for ratio in config.channel_ratios)]
        self.conv_blocks = nn.ModuleList(
            SemanticBlock(widths[i], widths[i + 1], stride, config.unit_kernel_size, config.block_dilations)
            for i, stride in enumerate(config.strides)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        for block in self.conv_blocks:
            x = block(x)
        return x


class CodecEncoder(nn.Module):
    """What is needed to read a clip: waveform [B, n] -> features [B, T, hidden] for the quantizer."""

    def __init__(self, config: HiggsAudioV2TokenizerConfig) -> None:
        super().__init__()
        from transformers import HubertModel

        acoustic: Any = config.acoustic_model_config
        hubert: Any = config.semantic_model_config
        self.sampling_rate, self.semantic_rate = config.sample_rate, config.semantic_sample_rate
        self.semantic_step = max(1, config.semantic_downsample_factor)
        self.hop_length = config.hop_length
        self.acoustic_encoder = AcousticEncoder(
            acoustic.encoder_hidden_size, acoustic.downsampling_ratios, acoustic.hidden_size
        )
        self.encoder_semantic = SemanticEncoder(config)
        self.semantic_model = HubertModel(hubert).eval()
        # Checkpoints are read with their weight norm folded.
        convolution = self.semantic_model.encoder.pos_conv_embed.conv
        if parametrize.is_parametrized(convolution):
            parametrize.remove_parametrizations(convolution, "weight")
        self.fc = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, samples: Tensor) -> Tensor:
        # Shorter than HuBERT's window, where the reference fails, a clip is one frame of it and silence.
        heard = math.ceil(samples.shape[-1] * self.semantic_rate / self.sampling_rate) + 2 * SEMANTIC_PADDING
        if heard < SEMANTIC_WINDOW:
            samples = F.pad(samples, (0, self.hop_length - samples.shape[-1]))
        semantic = self.encoder_semantic(self.semantic_features(samples).transpose(1, 2))
        # Where the two branches disagree about a broken frame at the end, the reference pads half a hop on each side.
        if self.acoustic_encoder.frames(samples.shape[-1]) != semantic.shape[-1]:
            samples = F.pad(samples, (self.hop_length // 2, self.hop_length // 2))
        acoustic = self.acoustic_encoder(samples[:, None])
        return self.fc(torch.cat([acoustic, semantic], dim=1).transpose(1, 2))

    def semantic_features(self, samples: Tensor) -> Tensor:
        """The mean of HuBERT's hidden states, thinned out to the codec's frame rate: [B, n] -> [B, T, hidden]."""
        heard = F.pad(resample(samples, self.sampling_rate, self.semantic_rate), (SEMANTIC_PADDING, SEMANTIC_PADDING))
        states = self.semantic_model(heard, output_hidden_states=True).hidden_states
        return torch.stack(states, dim=1).mean(dim=1)[:, :: self.semantic_step]
