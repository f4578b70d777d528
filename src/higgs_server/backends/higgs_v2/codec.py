"""The Higgs Audio v2 codec, loaded: PCM <-> codec frames, always in float32.

The small half that speaks is in memory from the start; the large half that listens (acoustic encoder and HuBERT) is
read from the file when the first clip is encoded. Knows numpy arrays and one device; no streams, no text, no hub.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from higgs_server.backends.higgs_v2.codec_checkpoint import CodecCheckpoint, open_checkpoint
from higgs_server.backends.higgs_v2.codec_network import CodecDecoder
from higgs_server.backends.higgs_v2.codec_semantic import CodecEncoder
from higgs_server.types import LoadError


def load_codec(folder: Path, device: str = "cpu") -> HiggsCodec:
    """Loads the codec of a folder in the native or the original layout.

    Both halves are checked for missing, extra and misshapen weights at once; only the decoder's are read. Raises
    LoadError.
    """
    return HiggsCodec(open_checkpoint(Path(folder)), torch.device(device))


class HiggsCodec:
    """Implements `engine.interface.Codec`; may be called from several threads at once."""

    def __init__(self, checkpoint: CodecCheckpoint, device: torch.device) -> None:
        config = checkpoint.config
        acoustic: Any = config.acoustic_model_config
        try:
            with torch.device("meta"):
                decoder, encoder = CodecDecoder(config), CodecEncoder(config)
        except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError) as error:
            raise LoadError(
                f"{checkpoint.file.with_name('config.json')} describes no codec that can be built: {error}",
                f"{checkpoint.file.with_name('config.json')} 描述的编解码器无法构建：{error}",
            ) from None
        checkpoint.check((decoder, encoder))
        checkpoint.load(decoder)
        self.sampling_rate: int = config.sample_rate
        self.hop_length: int = math.prod(acoustic.upsampling_ratios)
        self.num_codebooks: int = config.num_quantizers
        self.codebook_size: int = config.codebook_size
        self.context_frames = decoder.acoustic_decoder.context_frames
        self.device = device
        self._checkpoint = checkpoint
        self._decoder = decoder.to(device)
        self._encoder = encoder  # on the meta device until a clip is encoded
        self._encoder_loaded = False
        self._loading = threading.Lock()
        self._stream = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            # TF32 rounds to 1e-3, which would be heard where windows meet. Nothing but the codec has convolutions.
            torch.backends.cudnn.allow_tf32 = False
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def encode(self, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """Mono float32 [n] at 24 kHz -> codes int64 [frames, codebooks], as HiggsAudioV2TokenizerModel.encode gives.

        One frame for every `hop_length` samples, a broken one at the end by the reference's rule. No samples, no
        frames.
        """
        samples = np.asarray(samples, dtype=np.float32)
        if samples.ndim != 1:
            raise ValueError(f"samples must be [n], not {list(samples.shape)}")
        if not len(samples):
            return np.zeros((0, self.num_codebooks), dtype=np.int64)
        encoder = self._listening_half()
        with self._computing():
            features = encoder(torch.tensor(samples, device=self.device)[None])
            codes: npt.NDArray[np.int64] = self._decoder.quantizer.encode(features)[0].cpu().numpy()
            return codes

    def decode(self, codes: npt.NDArray[np.int64], left: int = 0, right: int = 0) -> npt.NDArray[np.float32]:
        """Codes int64 [batch, frames, codebooks] -> float32 [batch, (frames - left - right) * hop_length].

        `left` and `right` frames at the ends are context, heard only by their neighbours. Beyond both ends the network
        sees zeros. Raises ValueError for a code that no codebook has.
        """
        codes = np.asarray(codes, dtype=np.int64)
        if codes.ndim != 3 or codes.shape[2] != self.num_codebooks:
            raise ValueError(f"codes must be [batch, frames, {self.num_codebooks}], not {list(codes.shape)}")
        frames = codes.shape[1] - left - right
        if min(left, right, frames) < 0:
            raise ValueError(f"{codes.shape[1]} frames cannot hold {left} and {right} of context")
        if not codes.size:
            return np.zeros((codes.shape[0], frames * self.hop_length), dtype=np.float32)
        if codes.min() < 0 or codes.max() >= self.codebook_size:
            raise ValueError(f"codes must be within 0 and {self.codebook_size - 1}")
        with self._computing():
            samples = self._decoder(torch.tensor(codes, device=self.device), left, right)
            decoded: npt.NDArray[np.float32] = samples.cpu().numpy()
            return decoded

    def _listening_half(self) -> CodecEncoder:
        with self._loading:
            if not self._encoder_loaded:
                self._checkpoint.load(self._encoder)
                self._encoder.to(self.device)
                if self._stream is not None:
                    self._stream.wait_stream(torch.cuda.current_stream(self.device))
                self._encoder_loaded = True
        return self._encoder

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """On CUDA in a stream of its own: decoding does not wait for the model's steps, nor they for it."""
        with torch.inference_mode(), torch.cuda.stream(self._stream) if self._stream else nullcontext():
            yield
