"""Runs every kernel on tensors with forbidden memory before or behind them, and ends in a fault where one goes there.

    python tests/guarded_kernels.py [beyond]        beyond: a kernel that does, to see that it is caught

Triton's interpreter reads and writes where the kernels say. Results are full of what is no number before they are
written, so that a place which is left out shows.
"""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import mmap
import os
import sys
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
import triton
import triton.language as tl
from torch import Tensor

from higgs_server.backends.higgs_v2.attention_kernel import attend, attend_run
from higgs_server.backends.higgs_v2.kernels import embed, product
from higgs_server.backends.higgs_v2.quantize import quantize_rows
from higgs_server.engine import draw_kernel
from higgs_server.engine.sampler import SamplerState
from higgs_server.engine.sequence import CodeFormat

PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
new_empty, empty = Tensor.new_empty, torch.empty
memory: list[Any] = []
at_end = True


def guarded(tensor: Tensor) -> Tensor:
    """A copy that ends right before a page that nobody may touch, or begins right behind one."""
    if not tensor.numel():
        return tensor
    size = tensor.nbytes
    pages = -(-size // PAGE) + 2
    mapped = mmap.mmap(-1, pages * PAGE)
    memory.append((mapped, ctypes.c_char.from_buffer(mapped)))
    start = ctypes.addressof(memory[-1][1])
    for page in (0, pages - 1):
        assert libc.mprotect(ctypes.c_void_p(start + page * PAGE), PAGE, 0) == 0
    place = start + ((pages - 1) * PAGE - size if at_end else PAGE)
    memory.append((ctypes.c_char * size).from_address(place))
    return torch.frombuffer(memory[-1], dtype=tensor.dtype).view(tensor.shape).copy_(tensor)


def unwritten(*shape: Any, dtype: torch.dtype = torch.float32, **_: Any) -> Tensor:
    sizes = shape[0] if shape and not isinstance(shape[0], int) else shape
    return guarded(torch.full(sizes, torch.nan if dtype.is_floating_point else -77, dtype=dtype))


def noise(*shape: int) -> Tensor:
    return guarded(torch.randn(shape))


def written(result: Tensor) -> None:
    assert not result.isnan().any()
    assert not (result == -77).any()


def products() -> None:
    for inputs, outputs, rows, int8 in itertools.product((48, 1100), (40, 13), (1, 2, 17), (False, True)):
        for gated, normed, added in ((False, False, True), (True, True, False)):
            weight, scales = torch.randn(outputs * (1 + gated), inputs), None
            if int8:
                weight, scales = quantize_rows(weight)
                scales = guarded(scales)
            gain, residual = noise(inputs) if normed else None, noise(rows, outputs) if added else None
            x = noise(rows, inputs)
            written(product(x, guarded(weight), scales, gain=gain, eps=1e-5, gated=gated, residual=residual))
    written(embed(guarded(torch.randint(40, (3, 8))), noise(320, 520), 40))


def attention() -> None:
    for heads, kv_heads in ((3, 1), (24, 8)):
        rows = heads + 2 * kv_heads
        turns = noise(300, 16), noise(300, 16)
        for splits in (1, 3):
            cache = noise(4, kv_heads, 300, 32), noise(4, kv_heads, 300, 32)
            positions = guarded(torch.tensor([0, 63, 64, 299]))
            written(attend(noise(4, rows, 32), *turns, *cache, positions, kv_heads, splits))
        for start, count, size in ((0, 1, 32), (63, 33, 40), (290, 10, 64)):
            cache = noise(3, kv_heads, 300, 32), noise(3, kv_heads, 300, 32)
            place = guarded(torch.tensor([2, start, count]))
            written(attend_run(noise(size, rows, 32), *turns, *cache, place, kv_heads)[:count])


def drawing() -> None:
    code_format = CodeFormat(3, bos=1024, eos=1025)
    state = SamplerState.new(3, code_format, torch.device("cpu"))
    state = SamplerState(**{each.name: guarded(getattr(state, each.name)) for each in dataclasses.fields(state)})
    for row in (1, 1023, 1024, 5000):
        state.row.fill_(row)
        state.active.fill_(True)
        state.row_limit.fill_(10_000)
        state.ras_window.fill_(1024)
        state.ras_repeats.fill_(1)
        written(draw_kernel.draw(state, noise(3, 3, 1026), code_format, 0))


@triton.jit
def copy_too_much(source, target):
    place = tl.arange(0, 64)
    tl.store(target + place, tl.load(source + place))


if __name__ == "__main__":
    torch.manual_seed(0)
    if "beyond" in sys.argv:
        copy_too_much[(1,)](noise(60), noise(64))
    torch.empty, torch.empty_like = unwritten, lambda tensor: unwritten(tensor.shape, dtype=tensor.dtype)
    Tensor.new_empty = lambda self, *shape, **_: (  # type: ignore[method-assign]
        unwritten(*shape, dtype=self.dtype) if shape != (0,) else new_empty(self, 0)
    )
    for guard_behind in (True, False):
        at_end = guard_behind
        products()
        attention()
        drawing()
