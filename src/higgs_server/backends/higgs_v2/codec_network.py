"""The codec's network: residual vector quantizer and acoustic decoder (speaking), acoustic encoder (listening).

Knows tensors and the checkpoint's config, nothing of files, devices or streams. Parameter names are those of the
native layout (transformers' HiggsAudioV2TokenizerModel), so that a checkpoint loads without renaming. The acoustic
parts follow DAC (Kumar et al. 2023, arXiv:2306.06546) as X-Codec uses it (Ye et al. 2024, arXiv:2408.17175).
"""

# Modules are untyped where they are called.
# mypy: disable-error-code="no-any-return,no-untyped-call,operator"

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import HiggsAudioV2TokenizerConfig

RESIDUAL_DILATIONS = (1, 3, 9)


class Snake(nn.Module):
    """x + sin²(αx) / α with an α for each channel (Ziyin et al. 2020). [B, C, n] -> [B, C, n]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        sine = torch.sin_(self.alpha * x)
        return torch.addcmul(x, sine.square_(), (self.alpha + 1e-9).reciprocal())


class ResidualUnit(nn.Module):
    """Two convolutions over `dilation` * 6 + 1 samples, added to the input. [B, C, n] -> [B, C, n]."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.snake1 = Snake(channels)
        self.conv1 = nn.Conv1d(channels, channels, kernel_size=7, dilation=dilation, padding=3 * dilation)
        self.snake2 = Snake(channels)
        self.conv2 = nn.Conv1d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.snake2(self.conv1(self.snake1(x))))


class EncoderBlock(nn.Module):
    """Downsamples by `stride` and doubles the channels. [B, C, n] -> [B, 2C, n // stride or one more]."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.res_unit1, self.res_unit2, self.res_unit3 = (ResidualUnit(channels, d) for d in RESIDUAL_DILATIONS)
        self.snake1 = Snake(channels)
        self.conv1 = nn.Conv1d(
            channels, 2 * channels, kernel_size=2 * stride, stride=stride, padding=math.ceil(stride / 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.res_unit3(self.res_unit2(self.res_unit1(x)))
        return self.conv1(self.snake1(x))


class Upsampling(nn.ConvTranspose1d):
    """A transposed convolution that halves the channels. [B, C, n] -> [B, C / 2, n * stride].

    On a CPU it is a product and a sum: torch's rearranges the weights anew in each call, which takes longer than a
    window's product.
    """

    def __init__(self, channels: int, stride: int) -> None:
        padding = math.ceil(stride / 2)
        super().__init__(channels, channels // 2, 2 * stride, stride, padding, output_padding=stride % 2)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        if x.device.type != "cpu":
            return super().forward(x)
        stride = self.stride[0]
        parts = self.weight.flatten(1).t() @ x
        samples = F.fold(
            parts,
            output_size=(1, x.shape[-1] * stride),
            kernel_size=(1, 2 * stride),
            padding=(0, *self.padding),
            stride=(1, stride),
        )
        return samples.squeeze(2) + self.bias[:, None]  # type: ignore[index]


class DecoderBlock(nn.Module):
    """Upsamples by exactly `stride` and halves the channels. [B, C, n] -> [B, C / 2, n * stride]."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.snake1 = Snake(channels)
        self.conv_t1 = Upsampling(channels, stride)
        self.res_unit1, self.res_unit2, self.res_unit3 = (ResidualUnit(channels // 2, d) for d in RESIDUAL_DILATIONS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_t1(self.snake1(x))
        return self.res_unit3(self.res_unit2(self.res_unit1(x)))


class AcousticEncoder(nn.Module):
    """Waveform [B, 1, n] -> features [B, hidden, frames(n)]."""

    def __init__(self, channels: int, ratios: Sequence[int], hidden: int) -> None:
        super().__init__()
        self.ratios = ratios
        self.conv1 = nn.Conv1d(1, channels, kernel_size=7, padding=3)
        self.block = nn.ModuleList(EncoderBlock(channels << i, stride) for i, stride in enumerate(ratios))
        channels <<= len(ratios)
        self.snake1 = Snake(channels)
        self.conv2 = nn.Conv1d(channels, hidden, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for block in self.block:
            x = block(x)
        return self.conv2(self.snake1(x))

    def frames(self, n: int) -> int:
        """How many frames n samples give; below 1 where they are too few."""
        for stride in self.ratios:
            n = (n + 2 * math.ceil(stride / 2) - 2 * stride) // stride + 1
        return n


class AcousticDecoder(nn.Module):
    """Features [B, hidden, T] -> waveform [B, 1, T * hop]. Unlike DAC it has no tanh at the end."""

    def __init__(self, channels: int, ratios: Sequence[int], hidden: int) -> None:
        super().__init__()
        self.ratios = ratios
        self.conv1 = nn.Conv1d(hidden, channels, kernel_size=7, padding=3)
        self.block = nn.ModuleList(DecoderBlock(channels >> i, stride) for i, stride in enumerate(ratios))
        channels >>= len(ratios)
        self.snake1 = Snake(channels)
        self.conv2 = nn.Conv1d(channels, 1, kernel_size=7, padding=3)

    def forward(self, x: Tensor, left: int = 0, right: int = 0) -> Tensor:
        """Features with `left` and `right` frames of context at the ends -> the waveform of the frames between.

        Most of the context reaches no further than the first block: what no sample of the result depends on is cut
        off before each block, which costs nothing of exactness.
        """
        *reaches, last = self._reaches()
        x = self.conv1(x)
        for block, stride, reach in zip(self.block, self.ratios, reaches, strict=True):
            x, left, right = _cut(x, left, right, reach)
            x, left, right = block(x), left * stride, right * stride
        x, left, right = _cut(x, left, right, last)
        return _cut(self.conv2(self.snake1(x)), left, right, 0)[0]

    @property
    def context_frames(self) -> int:
        """Frames on each side that a sample depends on at most (10 for the published ratios)."""
        return 3 + self._reaches()[0]

    def _reaches(self) -> list[int]:
        """Of the input of each block and of what follows them: the neighbours on each side that a sample depends on."""
        reaches = [3]
        for stride in reversed(self.ratios):
            # Sample n of an upsampling hears input (n + padding) // stride and the one before, so that it reaches at
            # least as far to the right as to the left.
            samples = reaches[-1] + 3 * sum(RESIDUAL_DILATIONS)
            reaches.append((samples + math.ceil(stride / 2) - 1) // stride + 1)
        return reaches[::-1]


def _cut(x: Tensor, left: int, right: int, reach: int) -> tuple[Tensor, int, int]:
    """[..., n] of which `left` and `right` are context -> with at most `reach` of either, and how many they are."""
    left_over, right_over = max(left - reach, 0), max(right - reach, 0)
    return x[..., left_over : x.shape[-1] - right_over], left - left_over, right - right_over


class Codebook(nn.Module):
    """Vectors to choose among, [size, dim]."""

    embed: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("embed", torch.empty(size, dim))


class VectorQuantizer(nn.Module):
    """One codebook, searched and kept in a space of fewer dimensions."""

    def __init__(self, hidden: int, size: int, dim: int) -> None:
        super().__init__()
        self.codebook = Codebook(size, dim)
        self.project_in = nn.Linear(hidden, dim)
        self.project_out = nn.Linear(dim, hidden)

    def encode(self, x: Tensor) -> Tensor:
        """The nearest codes: [..., hidden] -> int64 [...]."""
        x, embed = self.project_in(x), self.codebook.embed
        distance = x.square().sum(-1, keepdim=True) - 2 * x @ embed.t() + embed.square().sum(-1)
        return distance.argmin(-1)

    def decode(self, codes: Tensor) -> Tensor:
        """int64 [...] -> [..., hidden]."""
        return self.project_out(F.embedding(codes, self.codebook.embed))


class ResidualVectorQuantizer(nn.Module):
    """Each quantizer codes what the ones before it left over (Zeghidour et al. 2021, arXiv:2107.03312)."""

    def __init__(self, quantizers: int, hidden: int, size: int, dim: int) -> None:
        super().__init__()
        self.quantizers = nn.ModuleList(VectorQuantizer(hidden, size, dim) for _ in range(quantizers))

    def encode(self, x: Tensor) -> Tensor:
        """[B, T, hidden] -> int64 [B, T, codebooks]."""
        codes = []
        for quantizer in self.quantizers:
            codes.append(quantizer.encode(x))
            x = x - quantizer.decode(codes[-1])
        return torch.stack(codes, dim=-1)

    def decode(self, codes: Tensor) -> Tensor:
        """int64 [B, T, codebooks] -> [B, T, hidden]."""
        total = self.quantizers[0].decode(codes[..., 0])
        for k, quantizer in enumerate(self.quantizers[1:], start=1):
            total = total + quantizer.decode(codes[..., k])
        return total


class CodecDecoder(nn.Module):
    """All that speaking needs: codes int64 [B, T, codebooks] -> waveform [B, T * hop]."""

    def __init__(self, config: HiggsAudioV2TokenizerConfig) -> None:
        super().__init__()
        acoustic: Any = config.acoustic_model_config
        self.quantizer = ResidualVectorQuantizer(
            config.num_quantizers, config.hidden_size, config.codebook_size, config.codebook_dim
        )
        self.fc2 = nn.Linear(config.hidden_size, acoustic.hidden_size)
        self.acoustic_decoder = AcousticDecoder(
            acoustic.decoder_hidden_size, acoustic.upsampling_ratios, acoustic.hidden_size
        )

    def forward(self, codes: Tensor, left: int = 0, right: int = 0) -> Tensor:
        """Of the frames between `left` and `right` frames of context: see AcousticDecoder.forward."""
        x = self.fc2(self.quantizer.decode(codes))
        return self.acoustic_decoder(x.transpose(1, 2), left, right).squeeze(1)
