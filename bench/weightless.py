"""A server whose network and codec cost nothing: a step takes BENCH_STEP_MS of waiting, and sound is noise.

For bench/host.py, which starts it as tests start servers. Prompts take no time at all.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from higgs_server.backends.higgs_v2.codec import HiggsCodec
from higgs_server.backends.higgs_v2.network import HiggsNetwork
from higgs_server.engine.runner import Runner
from higgs_server.main import main

STEP_SECONDS = float(os.environ["BENCH_STEP_MS"]) / 1e3
NOISE = np.random.default_rng(0).standard_normal(64 * 960, dtype=np.float32) * 0.1


class Weightless(Runner):
    """Steps follow each other on a device that is busy for so long with each, as a GPU is, and is asked no earlier."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.lookahead, self.padded = 1, True
        self.step = self._rows
        self._free = 0.0
        self._due: dict[int, float] = {}
        self._codes = torch.randint(0, 1000, (64, self._cache.slots, 9), generator=torch.Generator().manual_seed(0))
        self._codes[..., -1] = 0

    def _rows(self, batch: int, length: int, reach: int) -> torch.Tensor:
        self._free = max(self._free, time.perf_counter()) + STEP_SECONDS
        return self._codes[int(self._free * 1e6) % 64, :batch]

    def decode(self, *arguments: Any) -> Any:
        ticket = super().decode(*arguments)
        self._due[id(ticket)] = self._free
        return ticket

    def read(self, ticket: Any) -> Any:
        time.sleep(max(0.0, self._due.pop(id(ticket), 0.0) - time.perf_counter()))
        return super().read(ticket)


def read_nothing(network: HiggsNetwork, *_: Any) -> torch.Tensor:
    return torch.zeros(network.num_codebooks, network.codebook_size)


def noise(_: HiggsCodec, codes: np.ndarray, left: int = 0, right: int = 0) -> np.ndarray:
    samples = NOISE[: (codes.shape[1] - left - right) * 960]
    return np.broadcast_to(samples, (len(codes), len(samples)))


if __name__ == "__main__":
    import higgs_server.engine.engine as engine

    torch.set_num_threads(1)
    engine.Runner = Weightless  # type: ignore[misc]
    HiggsNetwork.prefill = read_nothing  # type: ignore[method-assign]
    HiggsCodec.decode = noise  # type: ignore[method-assign]
    sys.exit(main())
