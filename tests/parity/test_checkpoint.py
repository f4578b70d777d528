"""Loading, measured: what transformers saves is read as it was, and memory stays near the weights' own size."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from higgs_server.backends.higgs_v2.checkpoint import load_network, weight_bytes
from higgs_server.backends.higgs_v2.config import HiggsConfig
from higgs_server.backends.higgs_v2.network import HiggsNetwork
from make_tiny_checkpoint import NATIVE_CONFIG, tiny_weights, write_language_model

MID_SIZE = {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 4, "num_attention_heads": 8}

MEASURE = """
import sys
from pathlib import Path
import torch
from higgs_server.backends.higgs_v2.checkpoint import load_network, weight_bytes

def kilobytes(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field))

torch.zeros(1).add(1)
Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
before = kilobytes("VmRSS")
network = load_network(Path(sys.argv[1]), torch.device("cpu"), torch.bfloat16)
print((kilobytes("VmHWM") - before) * 1024 / weight_bytes(network))
"""


def write_mid_size(folder: Path, dtype: torch.dtype) -> Path:
    """A native checkpoint of 60 M parameters, in two shards; every tensor is one number throughout."""
    config = NATIVE_CONFIG | MID_SIZE
    (folder / "config.json").write_text(json.dumps(config))
    weights = {}
    for number, (name, tiny) in enumerate(tiny_weights(0).items()):
        size = {64: 512, 128: 4096}
        shape = [size.get(n, n) for n in tiny.shape]
        if "_proj" in name and "mlp" not in name:
            heads = 2 if name.endswith(("k_proj.weight", "v_proj.weight")) else 8
            shape = [512, heads * 16] if "o_proj" in name else [heads * 16, 512]
        layers = [".0."] if ".layers." not in name else [".0.", ".3."] if ".0." in name else [""]
        for layer in layers:
            weights[name.replace(".0.", layer) if layer else name] = torch.full(shape, float(number), dtype=dtype)
    names = sorted(weights)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, its in files.items():
        save_file({name: weights[name] for name in its}, folder / file)
    index = {name: file for file, its in files.items() for name in its}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32], ids=str)
def test_loading_takes_little_more_than_the_weights(tmp_path: Path, stored: torch.dtype) -> None:
    folder = write_mid_size(tmp_path, stored)
    size = weight_bytes(HiggsNetwork(HiggsConfig.from_folder(folder), torch.device("meta"), torch.bfloat16))
    assert size > 100e6
    environment = {"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1", "PATH": ""}
    command = [sys.executable, "-c", MEASURE, str(folder)]
    ratio = float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    assert 0.95 < ratio < 1.15


def test_what_transformers_saves_is_read_as_it_was(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import HiggsAudioV2ForConditionalGeneration

        first = write_language_model(tmp_path / "first", tiny_weights(7))
        model = HiggsAudioV2ForConditionalGeneration.from_pretrained(first)
        model.save_pretrained(tmp_path / "again", max_shard_size="1MB")
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 1
    ours, theirs = (load_network(tmp_path / name, torch.device("cpu"), torch.float32) for name in ("first", "again"))
    assert ours.config == theirs.config
    for (name, one), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(one, other), name
