"""Without an NVIDIA GPU Triton's interpreter runs the kernels, on the CPU: chosen before any of them is imported."""

from __future__ import annotations

import os

import torch

# As engine/trial.py has it.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
