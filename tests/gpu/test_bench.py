"""`bench/gpu.py` and `bench/host.py` run from end to end, so that time on a GPU goes into measuring."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
NUMBER = r"\d+(?:\.\d+)?"


def bench(*arguments: str, script: str = "gpu.py") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"bench/{script}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_without_a_gpu_it_says_so_in_a_line() -> None:
    result = bench()
    assert result.returncode == 1
    assert re.fullmatch(r"bench/gpu\.py .*NVIDIA GPU.*--tiny.*\n", result.stderr)
    assert not result.stdout


def test_a_tiny_model_goes_through_every_measurement(tmp_path: Path) -> None:
    result = bench("--tiny", "--folder", str(tmp_path))
    assert result.returncode == 0, result.stderr
    rows = {}
    for line in result.stdout.splitlines():
        if line.startswith("| "):
            name, *cells = line.strip("| ").split(" | ")
            rows[name] = [[float(number) for number in re.findall(NUMBER, cell)] for cell in cells]
    (cells,) = (cells for name, cells in rows.items() if name.startswith("one stream, ms a frame"))
    speed = [cell for cell in cells if cell]
    assert len(speed) == 5, "ours, without graphs, without kernels, transformers with two caches"
    assert all(ms > 0 for ms, _ in speed)
    for streams in (1, 2):
        assert all(number > 0 for number in rows[f"a step of {streams}, ms"][0])
        (heard,) = (cells[0] for name, cells in rows.items() if name.startswith(f"HTTP, {streams} clients"))
        assert len(heard) == 4, f"requests failed: {result.stdout}"
        assert all(number > 0 for number in heard[:3])
    ((error,),) = (cell for cell in rows["relative error of logits"] if cell)
    assert 0 < error < 0.5
    assert "start to ready, s" in rows
    assert "where a step of one stream spends its time" in result.stdout


@pytest.mark.soak
def test_the_host_alone_is_measured_without_any_device() -> None:
    result = bench("--clients", "1,4", "--seconds", "20", script="host.py")
    assert result.returncode == 0, result.stderr
    rows = [re.findall(NUMBER, line) for line in result.stdout.splitlines() if re.match(r"\| \d", line)]
    assert [row[0] for row in rows] == ["1", "4"]
    assert all(float(number) > 0 for row in rows for number in row)
