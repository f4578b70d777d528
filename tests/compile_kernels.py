"""Compiles the kernels of a decode step for GPUs that are not there, and prints what each takes of one.

    python tests/compile_kernels.py SM …        such as 80 90 120

They are compiled as the first launch would, for the true model's and a tiny one's shapes, by Triton's own compiler,
which needs no GPU; nothing is launched. A line of JSON for each: kernel, sm, bytes of shared memory, registers, and the
bytes that did not fit them.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from higgs_server.backends.higgs_v2.config import HiggsConfig
from higgs_server.backends.higgs_v2.fused import FusedSteps
from higgs_server.backends.higgs_v2.network import HiggsNetwork
from higgs_server.engine.draw_kernel import draw
from higgs_server.engine.sampler import SamplerState
from higgs_server.engine.sequence import CodeFormat

TYPES = {
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.int64: "i64",
    torch.bool: "i1",
}
TINY = Path(__file__).with_name("golden") / "higgs-v2-tiny-original"
META = torch.device("meta")
CUOBJDUMP = str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")


class Compiled:
    """Takes the place of a kernel's launch."""

    def __init__(self, sms: list[int]) -> None:
        self.sms = sms
        self.seen: set[str] = set()

    def __call__(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        values = dict(zip(kernel.arg_names, args, strict=False))
        values.update({name: options.pop(name) for name in list(options) if name in kernel.arg_names})
        signature, constants, attributes = {}, {}, {}
        for index, parameter in enumerate(kernel.params):
            value = values[parameter.name]
            if isinstance(value, Tensor):
                signature[parameter.name] = "*" + TYPES[value.dtype]
                attributes[(index,)] = [["tt.divisibility", 16]]
            elif parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
                signature[parameter.name] = "constexpr"
                constants[parameter.name] = value
            else:
                signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
                if isinstance(value, int) and value % 16 == 0:
                    attributes[(index,)] = [["tt.divisibility", 16]]
        shape = json.dumps([kernel.__name__, signature, str(constants), str(attributes), options])
        if shape in self.seen:
            return
        self.seen.add(shape)
        flags = [name for name, value in constants.items() if value is True]
        for sm in self.sms:
            source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
            made = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
            line = {"kernel": kernel.__name__, "flags": flags, "sm": sm, "shared": made.metadata.shared}
            print(json.dumps(line | resources(made.asm["cubin"])), flush=True)


def resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread, and the bytes of its own memory that it needs where registers do not suffice."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([CUOBJDUMP, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    return {name.lower(): int(re.findall(rf"\b{name}:(\d+)", said)[-1]) for name in ("REG", "STACK", "LOCAL")}


def step(config: HiggsConfig, batch: int, length: int, *, int8: bool) -> None:
    """A decode step on tensors that are not there."""
    network = HiggsNetwork(config, META, torch.bfloat16, int8=int8)
    fused = FusedSteps(network)
    fused._processors = 132
    cache = network.new_kv_cache(batch, 4096)
    rows = torch.zeros(batch, config.num_codebooks, dtype=torch.int64, device=META)
    logits = fused.decode(cache, rows, torch.zeros(batch, dtype=torch.int64, device=META), length)
    if batch > 1:
        token_ids = torch.zeros(batch * 16, dtype=torch.int64, device=META)
        fused.read_text(cache, token_ids, torch.zeros(3, dtype=torch.int64, device=META))
    code_format = CodeFormat.of(network)
    draw(SamplerState.new(batch, code_format, META), logits, code_format, config.codebook_size)


if __name__ == "__main__":
    from true_shape import CONFIG

    compiled = Compiled([int(sm) for sm in sys.argv[1:]])
    triton.runtime.jit.JITFunction.run = lambda self, *args, **options: compiled(self, *args, **options)
    with torch.inference_mode():
        for config, int8, batch, length in itertools.product(
            (HiggsConfig.from_dict(CONFIG), HiggsConfig.from_folder(TINY)), (False, True), (1, 2, 64), (256, 4096)
        ):
            step(config, batch, length, int8=int8)
