"""One row or several through a linear map on this CPU: torch's product beside the one in blocks of this server.

    python bench/projection.py

One thread and CPU time, so that a busy machine disturbs little. Prints the table of RESULTS.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from higgs_server.backends.higgs_v2.projection import _in_blocks

INPUTS, OUTPUTS = 3072, 8192


def milliseconds(call: Callable[[], object]) -> float:
    """The best of five."""
    call()
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        call()
        best = min(best, time.process_time() - began)
    return best * 1e3


def main() -> None:
    torch.set_num_threads(1)
    weight = torch.randn(OUTPUTS, INPUTS)
    half = weight.bfloat16()
    print("| rows | fp32 `F.linear` | fp32 in blocks | bf16 `F.linear` | bf16 in blocks |\n|---|---|---|---|---|")
    for rows in (1, 4, 8, 16, 64):
        x = torch.randn(rows, INPUTS)
        narrow = x.bfloat16()
        figures = (
            milliseconds(lambda x=x: F.linear(x, weight)),  # type: ignore[misc]
            milliseconds(lambda x=x: _in_blocks(x, weight)),  # type: ignore[misc]
            milliseconds(lambda x=narrow: F.linear(x, half)),  # type: ignore[misc]
            milliseconds(lambda x=x: _in_blocks(x, half)),  # type: ignore[misc]
        )
        print(f"| {rows} | " + " | ".join(f"{figure:.1f}" for figure in figures) + " |", flush=True)


if __name__ == "__main__":
    main()
