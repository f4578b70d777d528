"""Without an NVIDIA GPU Triton's interpreter runs the kernels, on the CPU: chosen before any of them is imported."""

from __future__ import annotations

import importlib.util
import os

import torch

collect_ignore = [] if importlib.util.find_spec("triton") else ["test_kernels.py", "test_draw_kernel.py"]

# As engine/trial.py has it.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
