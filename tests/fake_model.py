"""A cheap FrameModel that remembers exactly: logits are a hash of every position in the slot's cache.

A mix-up of slots, a lost or doubled position, or a row written to the wrong place changes everything that follows. All
arithmetic is on integers below 2^53 in float64, so results are equal to the bit whatever the batch. Like attention, it
multiplies masked positions by zero, so a NaN left behind by another utterance is seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from higgs_server.engine.interface import AudioRun, Run, TextRun

PRIME = 8_388_593


class FakeModel:
    """8 codebooks of 30 codes. It never ends by itself and nothing goes wrong: see scripted_model.py."""

    num_codebooks = 8
    codebook_size = 32
    stream_bos_id = 30
    stream_eos_id = 31

    def __init__(self, max_positions: int = 4096, text_rows: int = 0) -> None:
        self.max_positions, self.text_rows = max_positions, text_rows
        self.device = torch.device("cpu")
        self.dtype = torch.float64

    def new_kv_cache(self, slots: int, max_len: int) -> torch.Tensor:
        return torch.zeros((1, 2, slots, 1, max_len, 1), dtype=self.dtype)

    def prefill(self, kv_cache: torch.Tensor, slot: int, start: int, runs: Sequence[Run]) -> torch.Tensor:
        for run in runs:
            values = self._text(run) if isinstance(run, TextRun) else self._audio(torch.from_numpy(run.rows))
            kv_cache[0, :, slot, 0, start : start + len(values), 0] = values
            start += len(values)
        return self._logits(kv_cache[:, :, slot : slot + 1, :, :start], torch.tensor([start - 1]))[0]

    def decode(self, kv_cache: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor, max_len: int) -> torch.Tensor:
        batch = len(rows)
        assert int(positions.max()) < max_len <= kv_cache.shape[4]
        values = self._audio(rows)
        for part in (0, 1):
            kv_cache[0, part, :batch, 0, :, 0].scatter_(1, positions[:, None], values[:, None])
        return self._logits(kv_cache[:, :, :batch, :, :max_len], positions)

    def read_text(self, kv_cache: torch.Tensor, token_ids: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        slot, start, count = place.tolist()
        assert 0 < count <= len(token_ids) <= self.text_rows
        kv_cache[0, :, slot, 0, start : start + count, 0] = token_ids[:count].to(self.dtype)
        return token_ids

    @staticmethod
    def _text(run: TextRun) -> torch.Tensor:
        return torch.from_numpy(run.token_ids).to(torch.float64)

    def _audio(self, rows: torch.Tensor) -> torch.Tensor:
        weights = torch.arange(1, self.num_codebooks + 1) * 7919
        return (1_000_003 + (rows * weights).sum(-1)).to(torch.float64)

    def _logits(self, kv_cache: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        places = torch.arange(kv_cache.shape[4])
        seen = (places <= positions[:, None]).to(torch.float64)
        values = kv_cache[0, 1, :, 0, :, 0]
        state = (values * seen * ((places * 40_503) % 9973 + 1)).sum(-1)
        broken = state.isnan()
        state = state.nan_to_num().to(torch.int64) % PRIME
        k, v = self.num_codebooks, self.codebook_size
        code = torch.arange(1, k * v + 1).view(k, v)
        mixed = (state[:, None, None] * 31 + code * 104_729) % PRIME
        mixed = (mixed * mixed + code * 611_953) % PRIME
        logits = (mixed.to(torch.float32) / PRIME) * 8
        logits[:, :, self.stream_bos_id :] = -20.0
        logits[broken] = torch.nan
        return logits


def prompt(*tokens: int, audio: int = 0, seed: int = 0, bos: int = FakeModel.stream_bos_id) -> list[Run]:
    """A prompt: the tokens as text, if asked for `audio` rows of codes and a last text token, and row 0."""
    runs: list[Run] = [TextRun(np.array(tokens, dtype=np.int64))]
    if audio:
        rows = np.random.default_rng(seed).integers(0, 30, (audio, FakeModel.num_codebooks))
        runs += [AudioRun(rows), TextRun(np.array([7], dtype=np.int64))]
    return [*runs, AudioRun(np.full((1, FakeModel.num_codebooks), bos))]
